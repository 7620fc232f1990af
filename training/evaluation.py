"""Evaluates a classifier on a dataset, or resumes an interrupted evaluation."""

import json
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_cait.command_line import Precision
from keras_cait.files import (
    atomically,
    differences,
    locked,
    read_json,
    write_text,
)
from keras_cait.labels import check_classes
from keras_cait.litert import LiteRTModel
from keras_cait.loading import (
    Classifier,
    classifier,
    load_classifier,
    load_model,
    published,
    saved_model_folder,
)
from training.data.datasets import Examples, content
from training.data.pipeline import (
    center_crop,
    evaluation_batches,
    naming_unreadable,
)
from training.loop.checkpoints import restore_raw_weights
from training.loop.interruption import lost_workers
from training.loop.strategies import check_alike, is_chief, make_strategy
from training.metrics import (
    Predictions,
    calibration_error,
    join,
    predictions,
    top_k,
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
        source: as in `keras_cait.loading.load_classifier`.
        precision: dtype policy; exported files have their own.
        image_size, variant: as in `load_classifier`.
        raw: use the weights of a run's last step instead of its EMA weights.

    Raises:
        ValueError: as in `load_classifier`; or `raw` is given for something
            other than a run, or with another size.
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
    check_classes(
        classifier.classes, labels, examples.class_names, settings["data"]
    )
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
        ValueError: `unfinished` is damaged or belongs to other settings, images
            cannot be read, or as in `check_alike`.
    """
    found = []
    if unfinished.exists():
        found.append(load_unfinished(unfinished, settings))
    done = sum(len(part.correct) for part in found)
    check_alike(strategy, {"settings": settings, "images done": done})
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


def figures(found: Predictions) -> dict[str, Any]:
    """What is measured of predictions."""
    return {
        **top_k(found),
        "ece": calibration_error(found),
        "images": int(found.labeled.sum()),
    }
