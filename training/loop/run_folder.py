"""The folder of a run: checked first, then claimed, filled at the end."""

import dataclasses
import json
import math
import shlex
import shutil
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_cait.datasets import folder_of
from keras_cait.files import (
    atomically,
    differences,
    folder_path,
    locked,
    read_json,
    write_text,
)
from keras_cait.models import CaiT
from training.data.datasets import Examples, class_counts
from training.data.pipeline import evaluation_batches, unreadable_images
from training.loop.checkpoints import KEPT
from training.loop.history import numbers, read_history
from training.loop.strategies import best_precision
from training.loop.trainer import Trainer
from training.metrics import (
    balanced_accuracy,
    class_accuracies,
    confusion_matrix,
    predictions,
    top_k,
)
from training.recipe import Recipe


def is_started(output: Path) -> bool:
    """Whether a folder holds a run with a checkpoint to resume from."""
    has_checkpoint = any((output / "checkpoints").rglob("ckpt-*.index"))
    return has_checkpoint and (output / "recipe.json").exists()


def is_finished(output: Path) -> bool:
    """Whether a folder holds a run whose model is written."""
    return (output / "model.keras").exists()


def settled(
    recipe: Recipe, output: Path, strategy: tf.distribute.Strategy
) -> Recipe:
    """The recipe with a precision in place of "auto".

    Args:
        recipe: the resolved recipe.
        output: folder of the run. One that is there keeps its precision, also
            on other devices.
        strategy: the devices, which otherwise decide.
    """
    if recipe.precision != "auto":
        return recipe
    if is_started(output) or is_finished(output):
        precision = read_json(output / "recipe.json", ["precision"])[
            "precision"
        ]
    else:
        precision = best_precision(strategy)
    return dataclasses.replace(recipe, precision=precision)


def check_folder(output: Path, recipe: Recipe) -> None:
    """Checks that a run can start or be resumed in a folder, which may exist.

    Args:
        output: folder of the run. Nothing is created.
        recipe: the resolved recipe.

    Raises:
        ValueError: the path is a file or among the data, or the folder holds a
            finished run, one of another recipe, or the folds of a
            cross-validation.
        OSError: there is no permission to write to the folder.
    """
    folder_path(output)
    data = folder_of(recipe.data)
    if data and output.resolve().is_relative_to(data.resolve()):
        raise ValueError(
            f"{output} is in the data folder {data}, where the run's images "
            "would become data. Choose another --output."
        )
    if (output / "fold-0").exists():
        raise ValueError(
            f"{output} holds the folds of a cross-validation. Choose another "
            "--output, or add its --folds to resume it."
        )
    if is_finished(output):
        is_reported = (output / "report.html").exists()
        report = f" Its report is missing: python -m training.report {output}"
        raise ValueError(
            f"{output} holds a finished run. Choose another --output, or "
            f"delete the folder to start again.{'' if is_reported else report}"
        )
    # A run without a checkpoint has nothing to lose.
    if is_started(output):
        check_recipe(output, recipe)


def check_recipe(output: Path, recipe: Recipe) -> None:
    """Checks that the run in a folder is one of a recipe.

    Args:
        output: folder of the run.
        recipe: the resolved recipe.

    Raises:
        ValueError: it is one of another recipe.
    """
    ours = dataclasses.asdict(recipe)
    # Earlier versions lack fields, and trained with what is their default.
    theirs = dataclasses.asdict(Recipe()) | read_json(output / "recipe.json")
    # What the variant decides is compared by itself.
    names = sorted(theirs.keys() - {"variant"})
    differing = differences(theirs, ours, names)
    if differing:
        paths = (output / "recipe.json", output)
        own, folder = (shlex.quote(str(path)) for path in paths)
        raise ValueError(
            f"{output} holds a run of another recipe: {', '.join(differing)}. "
            f"Resume it with python -m training.train {own} --output {folder}, "
            "or choose another --output."
        )


def check_data(output: Path, data: Mapping[str, str]) -> None:
    """Checks that the run in a folder, if there is one, is on the same data.

    Args:
        output: folder of the run. Those of earlier versions say nothing.
        data: what tells the data of each split from others.

    Raises:
        ValueError: the data have changed since, or are others.
    """
    record = output / "data.json"
    if not record.exists() or not (is_started(output) or is_finished(output)):
        return
    differing = differences(read_json(record), data, data)
    if differing:
        raise ValueError(
            f"{output} holds a run on other data: {', '.join(differing)}. "
            "Restore the data, or choose another --output."
        )


def check_space(output: Path, trainer: Trainer) -> None:
    """Checks that the disk can hold what a run keeps.

    Args:
        output: folder of the run, which may exist and hold a part of it.
        trainer: the trainer, of whose variables the sizes are known.

    Raises:
        ValueError: the disk has too little space left.
    """
    variables = trainer.ema_model.variables
    model = size(variables)
    checkpoint = size(
        trainer.model.variables + variables + trainer.optimizer.variables
    )
    count = KEPT + 2
    # Checkpoints that exist will be replaced. Linked files count once.
    existing = {
        file.stat().st_ino: file.stat().st_size
        for file in (output / "checkpoints").rglob("ckpt-*")
    }
    needed = count * checkpoint + model - sum(existing.values())
    folder = output.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ValueError(
            f"The disk of {folder} has {free / 1e9:.1f} GB free, and the run "
            f"needs {needed / 1e9:.1f} GB: {count} checkpoints of "
            f"{checkpoint / 1e9:.1f} GB (the last {KEPT}, the best and the "
            f"one being written) and the model. Free some space, or choose an "
            "--output on another disk."
        )


def size(variables: list[keras.Variable]) -> int:
    """The bytes that variables take."""
    return sum(
        math.prod(v.shape) * tf.as_dtype(v.dtype).size for v in variables
    )


@contextmanager
def claimed(
    output: Path,
    recipe: Recipe,
    data: Mapping[str, str],
    is_chief: bool = True,
) -> Iterator:
    """Keeps the run's folder for this process while the block trains in it.

    Args:
        output: folder of the run, which is created.
        recipe: the resolved recipe, written to `recipe.json`.
        data: as in `check_data`, written to `data.json`.
        is_chief: whether this process writes. The other workers do not wait.

    Raises:
        ValueError: as in `check_folder`, or another process trains in the
            folder.
        OSError: the folder cannot be created or written.
    """
    if not is_chief:
        output.mkdir(parents=True, exist_ok=True)
        yield
        return
    with locked(output):
        check_folder(output, recipe)  # again: the lock's last holder wrote it
        output.mkdir(parents=True, exist_ok=True)
        if not is_started(output):
            for name, record in (
                ("data.json", data),
                ("recipe.json", dataclasses.asdict(recipe)),
            ):
                text = json.dumps(record, indent=2) + "\n"
                write_text(output / name, text)
        yield


def finish(
    trainer: Trainer,
    examples: Examples,
    validation: Examples,
    output: Path,
    epoch: int,
) -> None:
    """Writes the trained model, its labels and summary; the model last.

    The model has the EMA weights, or the raw ones if their validation accuracy
    is higher.

    Args:
        trainer: the trainer, after the last step.
        examples: training examples.
        validation: validation examples, ready for the model.
        output: folder of the run.
        epoch: the evaluated epoch whose weights the trainer has, from 1.
    """
    recipe = trainer.recipe
    history = read_history(output / "history.csv")
    rows = {int(row["epoch"]) + 1: row for row in history}
    ema_top1, raw_top1 = (
        float(rows[epoch][f"val_{name}"])
        for name in ("accuracy", "raw_accuracy")
    )
    kind = "raw" if raw_top1 > ema_top1 else "EMA"
    better = {"raw": trainer.model, "EMA": trainer.ema_model}[kind]
    # A copy that only this process has: the other workers take no part.
    config = {
        **better.get_config(),
        "classifier_activation": "softmax",
        "frozen": [],  # EMA weights do not learn here, but may elsewhere
    }
    model = CaiT.from_config(config)
    model.set_weights(better.get_weights())
    accuracy = evaluate(model, validation)
    classes = by_class(accuracy["confusion"], examples)
    speeds = numbers(history, "images_per_second")
    # That of a single step, which compiles, is not known.
    known = [speed for speed in speeds if math.isfinite(speed)]
    speed = statistics.harmonic_mean(known) if known else None
    images = trainer.step * recipe.global_batch_size
    summary = {
        **accuracy,
        "classes": classes,
        "weights": kind,
        "ema_top1": ema_top1,
        "raw_top1": raw_top1,
        "parameters": model.count_params(),
        "epochs": len(history),
        **({"best_epoch": epoch} if recipe.patience else {}),
        "steps": trainer.step,
        "devices": trainer.strategy.num_replicas_in_sync,
        "images_per_second": speed,
        "training_hours": speed and images / speed / 3600,
        "unreadable": [
            examples.name(int(number)) for number in unreadable_images(output)
        ],
        "keras": keras.__version__,
        "tensorflow": tf.__version__,
    }
    write_summary(summary, output)
    names = "".join(f"{name}\n" for name in validation.class_names)
    write_text(output / "labels.txt", names)
    write_images(validation, output / "validation")
    with atomically(output / "model.keras") as unfinished:
        model.save(unfinished)
    print(
        f"Top-1 accuracy on {validation.count:,} validation images: "
        f"{ema_top1:.1%} with EMA weights, {raw_top1:.1%} with raw ones. "
        f"{output / 'model.keras'} has the {kind} weights."
    )
    print_classes(accuracy["balanced_accuracy"], classes)


def evaluate(
    model: keras.Model, examples: Examples, batch_size: int = 250
) -> dict:
    """Evaluates a model on all examples.

    Args:
        model: Keras model of images to logits or probabilities.
        examples: examples, ready for the model.
        batch_size: images per batch.

    Returns:
        `top1`, `top5` and `balanced_accuracy`, in 0...1, and `confusion`, a
        `(classes, classes)` list of counts: labels in rows, predictions in
        columns.
    """
    batches = evaluation_batches(examples, tf.identity, batch_size)
    labels = np.concatenate([labels for _, labels, _ in batches])
    scores = model.predict(batches.map(lambda image, *_: image), verbose=0)
    # The last batch is padded.
    labels, scores = labels[: examples.count], scores[: examples.count]
    confusion = confusion_matrix(scores, labels)
    return {
        **top_k(predictions(scores, labels)),
        "balanced_accuracy": balanced_accuracy(confusion),
        "confusion": confusion.tolist(),
    }


def by_class(
    confusion: Sequence[Sequence[int]], examples: Examples
) -> list[dict[str, Any]]:
    """Images and accuracy of each class; `None` where they are not known.

    Args:
        confusion: as in `evaluate`.
        examples: training examples.
    """
    counts = class_counts(examples)
    accuracies = class_accuracies(np.array(confusion))
    return [
        {
            "name": name,
            "training_images": counts.get(name),
            "validation_images": sum(row),
            "accuracy": accuracy if any(row) else None,
        }
        for name, row, accuracy in zip(
            examples.class_names, confusion, accuracies.tolist(), strict=True
        )
    ]


def print_classes(balanced: float, classes: Sequence[dict[str, Any]]) -> None:
    """Prints what a single accuracy hides where classes differ in size.

    Args:
        balanced: balanced accuracy.
        classes: as in `by_class`.
    """
    found = [row for row in classes if row["validation_images"]]
    sizes = [row["validation_images"] for row in found]
    if max(sizes) < 2 * min(sizes):
        return
    worst = sorted(found, key=lambda row: row["accuracy"])[:3]
    lowest = ", ".join(
        f"{row['name']} {row['accuracy']:.1%} of {row['validation_images']}"
        for row in worst
    )
    print(f"Mean accuracy of the classes: {balanced:.1%}. Lowest: {lowest}")


def write_summary(summary: dict[str, Any], output: Path) -> None:
    """Writes `summary.json`, a line per value."""
    lines = [
        f'  "{key}": {json.dumps(value)}' for key, value in summary.items()
    ]
    write_text(output / "summary.json", "{\n" + ",\n".join(lines) + "\n}\n")


def write_images(examples: Examples, folder: Path) -> None:
    """Writes up to 1000 examples as PNG files, one subfolder per class.

    Their names are the examples' numbers, and those of the files they are from,
    cut to fit into the 255 bytes of a name.
    """
    for name in examples.class_names:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(0, examples.count, -(-examples.count // 1000)):
        image, label = examples.read(number)
        source = Path(examples.name(number))
        stem = f"_{source.stem[:50]}" if source.is_file() else ""
        keras.utils.save_img(
            folder
            / examples.class_names[int(label)]
            / f"{number:04}{stem}.png",
            image.numpy(),
            scale=False,
        )
