"""Exported files beside the Keras model, on the same pictures."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from export.litert_report import Report, block_lines, report, run_lines
from export.litert_runner import LiteRTClassifier
from export.serving.model_folder import existing_versions
from keras_cait.preprocessing import load_image, resize_and_crop

# The SavedModel names the best classes alone; the others have this score.
UNKNOWN = -1.0

BATCH_SIZE = 50
OF_BLOCKS = 8  # pictures for the outputs of the blocks


@dataclass(frozen=True)
class Row:
    """What one file did on the pictures.

    `top1`, `top5` and `agreement` (with the Keras model's first answers) are
    shares of the pictures, `max_difference` is the largest difference of any
    probability from the Keras model's, `milliseconds` is the median time for
    one picture alone, decoding included. `example` is what the file says of
    the first picture: label and score. `litert` is there for a `.tflite`.
    """

    name: str
    top1: float
    top5: float
    agreement: float
    max_difference: float
    milliseconds: float
    megabytes: float
    example: tuple
    litert: Report | None = None


def verify(model, labels, exported, pictures):
    """Compares exported files with a Keras model.

    Args:
        model: `CaiT`.
        labels: list of str, by class; the names of the sub-folders.
        exported: list of paths: `.tflite` files, SavedModels, or folders of
            served models, of which the newest version is taken.
        pictures: folder of picture files, in one sub-folder for each class.

    Returns:
        List of `Row`, the Keras model first.

    Raises:
        ValueError: the folder holds no pictures of these classes, or a file
            is neither a SavedModel nor a `.tflite`.
    """
    files = [
        (file, label)
        for label, name in enumerate(labels)
        for file in sorted((Path(pictures) / name).glob("*.*"))
    ]
    if not files:
        raise ValueError(
            f"{pictures} holds no pictures. Expected one folder for each "
            f"class, named {', '.join(labels[:3])} ..."
        )
    truth = np.array([label for _, label in files])
    encoded = [file.read_bytes() for file, _ in files]
    some = encoded[:: -(-len(encoded) // OF_BLOCKS)]

    keras_size = model.count_params() * 4
    contestants = [("Keras", keras_classifier(model), keras_size, None)]
    for path in map(version_folder, exported):
        name = "/".join(path.parts[-2:]) if path.is_dir() else path.name
        classify = classifier(path, labels)
        litert = None
        if path.suffix == ".tflite":
            litert = report(path, model, pixels(some, model.image_shape[:2]))
        contestants.append((name, classify, size_of(path), litert))

    rows, expected = [], None
    for name, classify, bytes_on_disk, litert in contestants:
        scores = np.concatenate(
            [
                classify(encoded[start : start + BATCH_SIZE])
                for start in range(0, len(encoded), BATCH_SIZE)
            ]
        )
        if expected is None:
            expected = scores
        best = scores.argsort(axis=-1)[:, ::-1]
        top1 = best[:, 0]
        rows.append(
            Row(
                name=name,
                top1=float((top1 == truth).mean()),
                top5=float((best[:, :5] == truth[:, None]).any(axis=1).mean()),
                agreement=float((top1 == expected.argmax(axis=-1)).mean()),
                max_difference=float(
                    np.abs(scores - expected)[scores != UNKNOWN].max()
                ),
                milliseconds=1e3 * latency(classify, encoded[:BATCH_SIZE]),
                megabytes=bytes_on_disk / 1e6,
                example=(labels[top1[0]], float(scores[0].max())),
                litert=litert,
            )
        )
    return rows


def picture_bytes(folder, count):
    """Some encoded pictures of a folder, from all over it."""
    files = sorted(Path(folder).glob("*/*.*"))
    return [file.read_bytes() for file in files[:: -(-len(files) // count)]]


def latency(classify, encoded):
    """Median seconds for one picture, each asked for alone."""
    seconds = []
    for picture in encoded:
        start = time.perf_counter()
        classify([picture])
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def version_folder(path):
    """The newest version, if the path is the folder of a served model."""
    path = Path(path)
    versions = existing_versions(path) if path.is_dir() else []
    return path / str(versions[-1]) if versions else path


def classifier(path, labels):
    """A file as a function of encoded pictures to their probabilities."""
    if path.suffix == ".tflite":
        return litert_classifier(path, labels)
    if tf.saved_model.contains_saved_model(str(path)):
        return saved_model_classifier(path, labels)
    raise ValueError(
        f"{path} is neither a .tflite file nor a SavedModel, nor the folder "
        "of a served model."
    )


def keras_classifier(model):
    predict = tf.function(
        lambda images: model(images, training=False),
        input_signature=[tf.TensorSpec(model.input.shape, tf.float32)],
    )
    size = model.image_shape[:2]
    return lambda encoded: predict(pixels(encoded, size)).numpy()


def saved_model_classifier(path, labels):
    """Asks `serving_default`, and puts its labelled scores in order."""
    classify = tf.saved_model.load(str(path)).signatures["serving_default"]
    index = {label.encode(): i for i, label in enumerate(labels)}

    def scores(encoded):
        answer = classify(image_bytes=tf.constant(encoded))
        found = np.vectorize(index.get)(answer["classes"].numpy())
        scores = np.full((len(encoded), len(labels)), UNKNOWN, np.float32)
        np.put_along_axis(scores, found, answer["scores"].numpy(), axis=1)
        return scores

    return scores


def litert_classifier(path, labels):
    classify = LiteRTClassifier(path)
    if classify.classes != len(labels):
        raise ValueError(
            f"{path} has {classify.classes} classes, the labels are "
            f"{len(labels)}. Give the labels that it was exported with: "
            "--labels FILE."
        )
    return lambda encoded: classify(pixels(encoded, classify.size))


def pixels(encoded, size):
    """Encoded pictures as a batch, `(batch, height, width, 3)`."""
    images = [resize_and_crop(load_image(one), size) for one in encoded]
    return np.stack(images).astype("float32")


def size_of(path):
    """Bytes of a file or of all files of a folder."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def table(rows):
    """The rows as aligned text, and what is known of the `.tflite` files."""
    columns = ("", "top-1", "top-5", "agreement", "max difference", "ms", "MB")
    lines = [columns] + [
        (
            row.name,
            f"{row.top1:.1%}",
            f"{row.top5:.1%}",
            f"{row.agreement:.1%}",
            f"{row.max_difference:.1e}",
            f"{row.milliseconds:.2f}",
            f"{row.megabytes:.1f}",
        )
        for row in rows
    ]
    tables = [lines]
    reports = {row.name: row.litert for row in rows if row.litert}
    if reports:
        tables += [list(run_lines(reports)), list(block_lines(reports))]
    return "\n\n".join(map(aligned, tables))


def aligned(lines):
    """Cells as columns, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def as_json(rows):
    return [asdict(row) for row in rows]
