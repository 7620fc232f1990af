"""Compares exported files with the Keras model on the same images."""

import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

import keras_cait
from export.exportable import image_size
from export.litert_report import Report, block_lines, report, run_lines
from export.predictors import (
    UNKNOWN,
    Predict,
    keras_predictor,
    load_predictor,
    to_pixels,
)
from keras_cait.conversion import listed
from keras_cait.datasets import Dataset
from keras_cait.loading import saved_model_folder
from keras_cait.preprocessing import imagenet_labels

TIMED_IMAGES = 50
BLOCK_IMAGES = 8


@dataclass(frozen=True)
class Row:
    """Results of one model on the images.

    Attributes:
        name: path of the file or of the SavedModel, or `"Keras"`.
        top1: share of images in 0...1 whose best class is right.
        top5: share of images in 0...1 with the right class among the best 5,
            or among those that a SavedModel returns.
        agreement: share of images in 0...1 with the Keras model's best class.
        images: number of images.
        max_difference: largest difference of any probability from the Keras
            model's.
        milliseconds: median time for one image, including decoding.
        megabytes: size of the file or folder in 10^6 bytes.
        example: label and score of the first image's best class.
        litert: more about a `.tflite` file.
    """

    name: str
    top1: float
    top5: float
    agreement: float
    images: int
    max_difference: float
    milliseconds: float
    megabytes: float
    example: tuple[str, float]
    litert: Report | None = None


def compare(
    model: keras_cait.CaiT,
    labels: Sequence[str],
    exported: Sequence[str | Path],
    dataset: Dataset,
    batch_size: int = 64,
) -> list[Row]:
    """Compares exported files with a Keras model.

    Args:
        model: the `CaiT` they were made from.
        labels: names of its classes, in order.
        exported: `.tflite` files, SavedModels, or folders of served models, of
            which the newest version is used.
        dataset: labeled images.
        batch_size: int > 0. Images per batch.

    Returns:
        One row per model, the Keras model first.

    Raises:
        ValueError: the dataset has classes that the model does not know, an
            image cannot be read, or a path is not an exported model.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1. Got {batch_size}.")
    targets = match_classes(dataset.class_names, labels)
    first = [
        encode(dataset[i][0]) for i in range(min(TIMED_IMAGES, len(dataset)))
    ]
    sample = encoded_sample(dataset, BLOCK_IMAGES)
    paths = [exported_path(path) for path in exported]
    predictors = [keras_predictor(model)]
    size = image_size(model)
    predictors += [load_predictor(path, labels, size) for path in paths]
    # Before the images, since it refuses a file of another model.
    reports = [None] + [
        report(path, model, to_pixels(sample, size))
        if path.suffix == ".tflite"
        else None
        for path in paths
    ]

    truth: list[int] = []
    scores: list[list[np.ndarray]] = [[] for _ in predictors]
    for start in range(0, len(dataset), batch_size):
        indices = range(start, min(start + batch_size, len(dataset)))
        batch = [dataset[i] for i in indices]
        encoded = [encode(image) for image, _ in batch]
        truth += [targets[class_index(label)] for _, label in batch]
        image_names = [dataset.name(i) for i in indices]
        for predict, found in zip(predictors, scores, strict=True):
            found.append(predict_named(predict, encoded, image_names))

    names = ["Keras", *map(str, paths)]  # files of two folders may share names
    sizes = [4 * model.count_params(), *map(bytes_on_disk, paths)]
    expected = np.concatenate(scores[0])
    return [
        row(
            name,
            np.concatenate(found),
            expected,
            np.array(truth),
            labels,
            1e3 * seconds_per_image(predict, first),
            size / 1e6,
            litert,
        )
        for name, found, predict, size, litert in zip(
            names, scores, predictors, sizes, reports, strict=True
        )
    ]


def row(
    name: str,
    scores: np.ndarray,
    expected: np.ndarray,
    truth: np.ndarray,
    labels: Sequence[str],
    milliseconds: float,
    megabytes: float,
    litert: Report | None,
) -> Row:
    """The row of one model, from its scores and the Keras model's."""
    best = np.argsort(-scores, kind="stable")
    top1 = best[:, 0]
    found = np.take_along_axis(scores, truth[:, None], axis=1) != UNKNOWN
    return Row(
        name=name,
        top1=float((top1 == truth).mean()),
        top5=float(
            (found & (best[:, :5] == truth[:, None])).any(axis=1).mean()
        ),
        agreement=float((top1 == expected.argmax(axis=-1)).mean()),
        images=len(truth),
        max_difference=float(
            np.abs(scores - expected)[scores != UNKNOWN].max()
        ),
        milliseconds=milliseconds,
        megabytes=megabytes,
        example=(labels[int(top1[0])], float(scores[0].max())),
        litert=litert,
    )


def match_classes(
    class_names: Sequence[str], labels: Sequence[str]
) -> list[int]:
    """The model's class for each class of a dataset.

    Args:
        class_names: names of the dataset's classes; ImageNet's may be WordNet
            ids.
        labels: names of the model's classes.

    Raises:
        ValueError: the model does not know a class.

    Example:
    >>> match_classes(["dog"], ["cat", "dog"])
    [1]
    """
    wordnet = {wordnet_id: label for wordnet_id, label in imagenet_labels()}
    index = {label: i for i, label in enumerate(labels)}
    unknown = [
        name
        for name in class_names
        if name not in index and wordnet.get(name) not in index
    ]
    if unknown:
        raise ValueError(
            "The model does not know these classes of the dataset: "
            f"{listed(unknown)}. Its own are {listed(labels)}. Use images of "
            "its classes."
        )
    return [
        index[name] if name in index else index[wordnet[name]]
        for name in class_names
    ]


def class_index(label: int | np.ndarray) -> int:
    """The class of an image that has exactly one."""
    if isinstance(label, np.ndarray):
        raise ValueError(
            "verify needs a dataset with one label per image. Choose another "
            "--data, such as imagenet2012."
        )
    return label


def encoded_sample(dataset: Dataset, count: int) -> list[bytes]:
    """At most `count` encoded images from all over a dataset."""
    stride = -(-len(dataset) // count)
    return [encode(dataset[i][0]) for i in range(0, len(dataset), stride)]


def encode(image: bytes | np.ndarray) -> bytes:
    """The bytes of an encoded image; an array is encoded as PNG."""
    if isinstance(image, bytes):
        return image
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    return file.getvalue()


def predict_named(
    predict: Predict, encoded: Sequence[bytes], names: Sequence[str]
) -> np.ndarray:
    """Calls a predictor; an image that it cannot read is named."""
    unreadable = (ValueError, tf.errors.InvalidArgumentError)
    try:
        return predict(encoded)
    except unreadable:
        for image, name in zip(encoded, names, strict=True):
            try:
                predict([image])
            except unreadable as error:
                raise ValueError(
                    f"Cannot read image {name!r}: {error}"
                ) from None
        raise


def exported_path(path: str | Path) -> Path:
    """A `.tflite` file, or the folder of a SavedModel.

    Raises:
        ValueError: the path is neither.
    """
    path = Path(path)
    if path.suffix == ".tflite" and path.is_file():
        return path
    folder = saved_model_folder(path)
    if folder is None:
        raise ValueError(
            f"{str(path)!r} is not a .tflite file, a SavedModel or the folder "
            "of a served model."
        )
    return folder


def seconds_per_image(predict: Predict, encoded: Sequence[bytes]) -> float:
    """Median seconds for one image per call."""
    seconds = []
    for image in encoded:
        start = time.perf_counter()
        predict([image])
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds))


def bytes_on_disk(path: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def results_table(rows: Sequence[Row]) -> str:
    """The rows as aligned text, and the reports of `.tflite` files."""
    head = ["", "top-1", "top-5", "agreement", "max difference", "ms", "MB"]
    lines = [head] + [
        [
            row.name,
            f"{row.top1:.1%}",
            f"{row.top5:.1%}",
            f"{row.agreement:.1%}",
            f"{row.max_difference:.1e}",
            f"{row.milliseconds:.2f}",
            f"{row.megabytes:.1f}",
        ]
        for row in rows
    ]
    tables = [lines]
    reports = {row.name: row.litert for row in rows if row.litert}
    if reports:
        tables += [list(run_lines(reports)), list(block_lines(reports))]
    return "\n\n".join(map(aligned, tables))


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Cells in columns, the first aligned left and the others right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )
