"""Measures the accuracy of models, beside the published figures.

python -m training.evaluate --model S24 --data imagenet2012 --data-dir DIR
python -m training.evaluate --all --data imagenet2012_real --data-dir DIR
python -m training.evaluate --model runs/digits --data digits
python -m training.evaluate --predictions predictions
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# First, as it explains imports that fail.
from keras_cait.command_line import (
    BatchSize,
    CropRatio,
    Data,
    DataDir,
    ImageSize,
    MaxUnreadable,
    Precision,
    Variant,
    require_tensorflow,
    run,
)

# isort: split
import keras
import numpy as np
import tensorflow as tf
from cyclopts import App, Parameter

from keras_cait.datasets import split_of
from keras_cait.files import (
    atomically,
    differences,
    folder_path,
    locked,
    read_json,
    write_text,
)
from keras_cait.litert import LiteRTModel
from keras_cait.loading import (
    Classifier,
    classifier,
    find_labels,
    identity,
    load_classifier,
    load_model,
    published,
    saved_model_folder,
)
from keras_cait.pretrained import PRETRAINED
from training.data.datasets import Examples, check_classes, content, load
from training.data.pipeline import (
    center_crop,
    evaluation_batches,
    naming_unreadable,
)
from training.loop.checkpoints import restore_raw_weights
from training.loop.interruption import lost_workers
from training.loop.strategies import is_chief, make_strategy
from training.metrics import (
    Predictions,
    calibration_error,
    join,
    predictions,
    top_k,
)
from training.options import StrategyName
from training.prediction_files import read_predictions

# timm's top-1 and top-5 of the published models in percent, by dataset; those
# on imagenet2012 are in PRETRAINED. From results-imagenet-real.csv and
# results-imagenetv2-matched-frequency.csv of huggingface/pytorch-image-models.
MEASURED = {
    "imagenet2012": {
        key: (row.measured_top_1, row.measured_top_5)
        for key, row in PRETRAINED.items()
    },
    "imagenet2012_real": {
        ("XXS24", 224): (85.240, 96.714),
        ("XXS24", 384): (87.414, 97.619),
        ("XXS36", 224): (86.323, 97.113),
        ("XXS36", 384): (88.161, 97.899),
        ("XS24", 384): (89.169, 98.285),
        ("S24", 224): (88.447, 97.950),
        ("S24", 384): (89.510, 98.362),
        ("S36", 384): (89.829, 98.431),
        ("M36", 384): (90.049, 98.484),
        ("M48", 448): (90.181, 98.480),
    },
    "imagenet_v2": {
        ("XXS24", 224): (67.29, 87.51),
        ("XXS24", 384): (70.55, 89.77),
        ("XXS36", 224): (68.37, 88.60),
        ("XXS36", 384): (72.14, 90.78),
        ("XS24", 384): (74.11, 91.92),
        ("S24", 224): (73.01, 91.20),
        ("S24", 384): (75.38, 92.52),
        ("S36", 384): (76.01, 92.92),
        ("M36", 384): (76.37, 93.04),
        ("M48", 448): (76.84, 93.35),
    },
}

# What `table` shows of a result.
RESULT_KEYS = (
    *("model", "published", "data", "images", "top1", "top5", "ece"),
    "images_per_second",
)


def load_for_evaluation(
    source: str,
    precision: Precision = "float32",
    image_size: int | None = None,
    variant: str | None = None,
    raw: bool = False,
) -> Classifier:
    """Loads a model of any kind, compiled where possible.

    Args:
        source: as of `keras_cait.loading.load_classifier`.
        precision: dtype policy; exported files have their own.
        image_size, variant: as of `load_classifier`.
        raw: use the weights of a run's last step instead of its EMA weights.

    Raises:
        ValueError: as of `load_classifier`; or `raw` is asked of something that
            is not a run, or at another size.
    """
    if raw:
        if image_size:
            raise ValueError("--raw needs the run's own image size.")
        model = load_model(source, precision=precision)
        restore_raw_weights(model, source)
        loaded = classifier(model)
    else:
        is_own = precision == "float32" and is_exported(source)
        loaded = load_classifier(
            source,
            variant=variant,
            image_size=image_size,
            precision=None if is_own else precision,
        )
    return replace(loaded, predict=compiled(loaded.predict))


def is_exported(source: str) -> bool:
    """Whether a source is a SavedModel or a `.tflite` file."""
    path = Path(source)
    if published(source) or (path / "model.keras").is_file():
        return False
    return path.suffix == ".tflite" or saved_model_folder(path) is not None


def compiled(predict: Callable) -> Callable:
    """A function of tensors, as a graph; LiteRT has its own."""
    if isinstance(predict, LiteRTModel):
        return lambda images: tf.constant(predict(images.numpy()))
    return tf.function(predict)


@lost_workers()
def measure(
    classifier: Classifier,
    examples: Examples,
    settings: dict[str, Any],
    path: Path,
    batch_size: int = 64,
    strategy: tf.distribute.Strategy | None = None,
    save_seconds: float = 60.0,
    labels: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Evaluates a classifier, or resumes an interrupted evaluation.

    Args:
        classifier: the model.
        examples: the dataset.
        settings: what the result depends on, which becomes part of it.
        path: JSON file to write. Predictions so far are saved beside it.
        batch_size: images per batch, over all devices.
        strategy: strategy in whose scope the classifier was loaded; `None` is
            one device. Workers share the folder of the file.
        save_seconds: seconds between savings of the predictions so far.
        labels: the model's labels, if it has any.

    Returns:
        The settings, with the names of `unreadable` images that were left
        out, and the `content` of a folder; `top1`, `top5` and `ece` in 0...1;
        `images` with a label; `images_per_second` of the model, without reading
        images and without the first batch; versions.

    Raises:
        ValueError: the file is the result of other settings, weights or images,
            another process is writing it, the batch does not divide into the
            devices, the classes differ, or images cannot be read.
    """
    distribution = strategy or make_strategy("one")
    devices = distribution.num_replicas_in_sync
    if batch_size % devices:
        raise ValueError(
            f"The batch size must be a multiple of the {devices} devices. Got "
            f"{batch_size}."
        )
    check_classes(classifier.classes, labels, examples, settings["data"])
    settings = {**settings, "unreadable": list(examples.unreadable)}
    if examples.files:  # which may change
        settings["content"] = content(examples)
    if path.exists():
        result = read_json(path)
        check_settings(settings, result, path)
        return result
    chief = is_chief(distribution)
    with locked(path) if chief else nullcontext():
        unfinished = path.with_suffix(".unfinished.npz")
        everything, images_per_second = predict_all(
            classifier,
            examples,
            settings,
            unfinished,
            batch_size,
            distribution,
            save_seconds,
        )
        result = {
            **settings,
            **figures(everything),
            "images_per_second": images_per_second,
            "batch_size": batch_size,
            "devices": devices,
            "keras": keras.__version__,
            "tensorflow": tf.__version__,
        }
        if chief:
            write_text(path, json.dumps(result, indent=2) + "\n")
            unfinished.unlink(missing_ok=True)
    return result


def predict_all(
    classifier: Classifier,
    examples: Examples,
    settings: dict[str, Any],
    unfinished: Path,
    batch_size: int,
    strategy: tf.distribute.Strategy,
    save_seconds: float,
) -> tuple[Predictions, float | None]:
    """The predictions for all examples, and the model's images per second.

    Args:
        unfinished: file of the predictions so far, to resume from.
        classifier, examples, settings, batch_size, strategy, save_seconds: as
            of `measure`.

    Raises:
        ValueError: `unfinished` is damaged or belongs to other settings, or
            images cannot be read.
    """
    found = []
    if unfinished.exists():
        found.append(load_unfinished(unfinished, settings))
    done = sum(len(part.correct) for part in found)
    saved = time.perf_counter()
    seconds, timed = 0.0, 0
    transform = center_crop(classifier.image_size, settings["crop_ratio"])
    batches = strategy.distribute_datasets_from_function(
        lambda context: evaluation_batches(
            examples, transform, batch_size, context, done
        )
    )
    with naming_unreadable(examples, transform):
        for step, (images, *known) in enumerate(batches):
            start = time.perf_counter()
            outputs = strategy.run(classifier.predict, args=(images,))
            probabilities, labels, weights = (
                strategy.gather(values, axis=0).numpy()
                for values in (outputs, *known)
            )
            real = weights > 0  # the last batch is padded
            if step:
                seconds += time.perf_counter() - start
                timed += int(real.sum())
            found.append(predictions(probabilities[real], labels[real]))
            is_due = time.perf_counter() - saved >= save_seconds
            if is_due and is_chief(strategy):
                saved = time.perf_counter()
                save(join(found), settings, unfinished)
    return join(found), timed / seconds if timed else None


def load_unfinished(path: Path, settings: dict[str, Any]) -> Predictions:
    """The predictions of an interrupted evaluation with the same settings."""
    try:
        with np.load(path) as file:
            theirs = json.loads(str(file["settings"]))
            found = Predictions(*(file[name] for name in Predictions._fields))
    except Exception as error:  # of many kinds
        raise ValueError(
            f"{str(path)!r} is damaged. Delete it to evaluate from the start. "
            f"({error})"
        ) from None
    check_settings(settings, theirs, path)
    return found


def save(found: Predictions, settings: dict[str, Any], path: Path) -> None:
    """Writes the predictions so far, to resume from."""
    with atomically(path) as unfinished:
        np.savez(unfinished, settings=json.dumps(settings), **found._asdict())


def check_settings(
    ours: dict[str, Any], theirs: dict[str, Any], path: Path
) -> None:
    theirs = {"unreadable": []} | theirs  # older results
    differing = differences(theirs, ours, ours)
    if differing:
        raise ValueError(
            f"{path} belongs to another evaluation: {', '.join(differing)}. "
            "Choose another --output, or delete it."
        )


def table(results: Sequence[dict[str, Any]]) -> str:
    """Results as a Markdown table, beside the figures of timm and the authors.

    Args:
        results: as of `measure`.

    Returns:
        Percent, and differences in points.
    """
    rows = [
        "| model | dataset | images | top-1 | timm | difference | authors "
        "| top-5 | timm | difference | ECE | images/s |",
        "|" + "---|" * 12,
    ]
    for result in results:
        timm, authors = (None, None), None
        if result["published"]:
            key = tuple(result["published"])
            timm = MEASURED.get(result["data"], {}).get(key, timm)
            if result["data"] == "imagenet2012":
                authors = PRETRAINED[key].published_top_1
        cells = [
            result["model"],
            result["data"],
            images(result),
            *beside(100 * result["top1"], timm[0]),
            number(authors, ".1f"),
            *beside(100 * result["top5"], timm[1]),
            f"{100 * result['ece']:.2f}",
            number(result["images_per_second"], ".1f"),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def images(result: dict[str, Any]) -> str:
    """The number of images, and of those that were left out."""
    left_out = len(result.get("unreadable", []))
    count = f"{result['images']:,}"
    return f"{count} ({left_out} unreadable left out)" if left_out else count


def beside(ours: float, theirs: float | None) -> list[str]:
    """Our figure, another one and the difference, as text."""
    difference = None if theirs is None else ours - theirs
    return [
        number(ours, ".3f"),
        number(theirs, ".3f"),
        number(difference, "+.3f"),
    ]


def number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


app = App(name="python -m training.evaluate", help=__doc__, version_flags=[])


@app.default
def evaluate(
    *,
    model: Annotated[
        list[str] | None,
        Parameter(
            negative=(),
            help="Published model (S24, or S24-384 at another size), run "
            "folder, .keras file, weights file, SavedModel or .tflite file. "
            "May be repeated.",
        ),
    ] = None,
    all: Annotated[
        bool, Parameter(negative=(), help="Evaluate all published models.")
    ] = False,
    predictions: Annotated[
        Path | None,
        Parameter(
            help="Evaluate the output of python -m export predict --data. Of "
            "the other options, --output and --max-unreadable apply."
        ),
    ] = None,
    data: Data = "imagenet2012",
    data_dir: DataDir = None,
    output: Annotated[
        Path,
        Parameter(help="Folder for a JSON file per model, and table.md."),
    ] = Path("evaluation"),
    variant: Variant = None,
    image_size: ImageSize = None,
    batch_size: BatchSize = 64,
    crop_ratio: CropRatio = 1.0,
    precision: Precision = "float32",
    raw: Annotated[
        bool,
        Parameter(
            negative=(),
            help="Use the weights of a run's last step, not its EMA weights.",
        ),
    ] = False,
    max_unreadable: MaxUnreadable = 0,
    strategy: StrategyName = "auto",
) -> None:
    """Evaluates models, or resumes interrupted evaluations.

    The images are those of the dataset's validation split. Results on
    imagenet2012, imagenet2012_real (any number of labels per image) and
    imagenet_v2 are shown beside the published ones. The authors
    advise float32 for M48; exported files have their own precision.
    """
    require_tensorflow()
    if [bool(model), all, predictions is not None].count(True) != 1:
        raise ValueError(
            "Give --model MODEL (may be repeated), --all, or --predictions "
            "FOLDER."
        )
    folder_path(output)
    if predictions:
        result = measure_predictions(predictions, output, max_unreadable)
        print(table([result]))
        write_text(output / "table.md", table(all_results(output)) + "\n")
        return
    sources = model or [f"{name}-{size}" for name, size in PRETRAINED]
    distribution = make_strategy(strategy)

    @cache  # models share a dataset, unless they are runs of other splits
    def examples_of(**part: Any) -> Examples:
        return load(data, "validation", data_dir, max_unreadable, **part)

    for source in sources:
        split = split_of(source, data)
        examples = examples_of(**split)
        # More would be padding.
        replicas = distribution.num_replicas_in_sync
        size = min(batch_size, -(-examples.count // replicas) * replicas)
        with distribution.scope():
            loaded = load_for_evaluation(
                source, precision, image_size, variant, raw
            )
        names = names_of(source, image_size)
        if raw:
            names["model"] += " raw"
        settings = {
            **names,
            "data": data,
            "crop_ratio": crop_ratio,
            "image_size": list(loaded.image_size),
            "precision": precision,
            **split,
            "weights": identity(source),
        }
        path = result_file(output, data, names["model"], precision)
        result = measure(
            loaded,
            examples,
            settings,
            path,
            size,
            distribution,
            labels=find_labels(source),
        )
        print(table([result]))
    if is_chief(distribution):
        write_text(output / "table.md", table(all_results(output)) + "\n")


def measure_predictions(
    folder: Path, output: Path, max_unreadable: int = 0
) -> dict[str, Any]:
    """Evaluates the output of `python -m export predict --data`.

    Args:
        folder: the predictions.
        output: folder for the JSON file.
        max_unreadable: as of `read_predictions`.

    Returns:
        As of `measure`, without what only it knows. The speed is `None`.

    Raises:
        ValueError: as of `read_predictions`; or the JSON file is the result of
            other predictions.
    """
    found, job, unreadable = read_predictions(folder, max_unreadable)
    data = job["data"]
    if job["split"] != "validation":
        data += f" {job['split']}"
    row, size = published(job["model"]), job["image_size"][0]
    other_size = size if row and row.image_size != size else None
    settings = {
        **names_of(job["model"], other_size),
        "data": data,
        "crop_ratio": 1.0,
        "image_size": job["image_size"],
        "weights": job["weights"],
        "unreadable": unreadable,
    }
    path = result_file(output, data, settings["model"], "predictions")
    with locked(path):
        if path.exists():
            check_settings(settings, read_json(path), path)
        result = {
            **settings,
            **figures(found),
            "images_per_second": None,
        }
        write_text(path, json.dumps(result, indent=2) + "\n")
    return result


def figures(found: Predictions) -> dict[str, Any]:
    """What is measured of predictions."""
    return {
        **top_k(found),
        "ece": calibration_error(found),
        "images": int(found.labeled.sum()),
    }


def names_of(source: str, image_size: int | None) -> dict[str, Any]:
    """A model's name in a result, and that of a published one.

    Example:
    >>> names_of("S24", 384)
    {'model': 'S24-224 at 384', 'published': ['S24', 224]}
    """
    row = published(source)
    name = f"{row.variant}-{row.image_size}" if row else source
    return {
        "model": f"{name} at {image_size}" if image_size else name,
        "published": row and [row.variant, row.image_size],
    }


def result_file(output: Path, *words: str) -> Path:
    """The JSON file of a result."""
    name = "".join(c if c.isalnum() else "_" for c in " ".join(words))
    return output / f"{name}.json"


def all_results(folder: Path) -> list[dict[str, Any]]:
    """The results in a folder, which may also hold other JSON files."""
    results = []
    for file in sorted(folder.glob("*.json")):
        with suppress(ValueError):
            results.append(read_json(file, RESULT_KEYS))
    return results


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line: `argv`, or that of the process."""
    run(app, argv)


if __name__ == "__main__":
    main()
