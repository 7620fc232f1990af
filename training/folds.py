"""Cross-validation: a training per fold, and their summary."""

import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_cait.datasets import SPLITS, has_own_split
from keras_cait.decoding import decode_image
from keras_cait.files import read_json
from training.data.datasets import check_training, content, load
from training.data.pipeline import check_all_readable, steps_per_epoch
from training.loop.run_folder import (
    check_data,
    check_folder,
    check_recipe,
    is_finished,
    is_started,
    print_classes,
    settled,
    write_summary,
)
from training.loop.strategies import is_chief
from training.metrics import balanced_accuracy, class_accuracies
from training.recipe import Recipe


def train_folds(
    recipe: Recipe,
    folds: int,
    output: Path,
    train: Callable[[Recipe, Path], None],
    devices: tf.distribute.Strategy,
) -> None:
    """Trains a recipe once per fold, or resumes this, and sums up.

    Every image is for validation in one of the folds, and is read once before
    the first. The split of the first of five is that of a run without folds.

    Args:
        recipe: the recipe; its `validation_fraction` and `fold` are not used.
        folds: number of folds, at least 2.
        output: gets a run folder per fold, `fold-0` and so on, and at the end
            `summary.json`.
        train: function of a recipe and a run folder that trains one fold.
        devices: the devices that train it.

    Raises:
        ValueError: the dataset has its own split, too few images or one that
            cannot be read; the output holds a single run, or a subfolder one of
            another recipe or other data.
    """
    if has_own_split(recipe.data):
        raise ValueError(
            "--folds splits a folder:PATH without train and validation. Got "
            f"{recipe.data}, which has its own validation images."
        )
    if is_started(output) or is_finished(output):
        raise ValueError(
            f"{output} holds a single run. Choose another --output for --folds."
        )
    runs = {
        output / f"fold-{fold}": replace(
            recipe, validation_fraction=1 / folds, fold=fold
        )
        for fold in range(folds)
    }
    unread = []
    for folder, fold in runs.items():
        check = check_recipe if is_finished(folder) else check_folder
        check(folder, settled(fold.resolved(), folder, devices))
        parts = {s: load(fold.data, s, **fold.split()) for s in SPLITS}
        check_training(parts["train"], parts["validation"], fold.data)
        steps_per_epoch(parts["train"], fold)  # folds differ in size
        check_data(folder, {s: content(part) for s, part in parts.items()})
        if not is_finished(folder):
            unread.append(parts["validation"])
    if unread:
        count = sum(part.count for part in unread)
        print(f"Reading {count:,} images once, to name damaged ones")
        check_all_readable(unread, decode_image)
    for folder, fold in runs.items():
        if not is_finished(folder):
            print(f"Fold {fold.fold + 1} of {folds}: {folder}", flush=True)
            keras.backend.clear_session()
            gc.collect()  # the graphs of the previous fold
            train(fold, folder)
    if is_chief(devices):
        summaries = [read_json(run / "summary.json", ["top1"]) for run in runs]
        summary = summed_up(summaries)
        write_summary(summary, output)
        print(
            f"Top-1 accuracy of {folds} folds: {summary['top1']:.1%} ± "
            f"{summary['top1_deviation']:.1%} (mean and deviation). The folds "
            f"and their summary are in {output}"
        )
        print_classes(summary["balanced_accuracy"], summary["classes"])


def summed_up(summaries: list[dict[str, Any]]) -> dict[str, Any]:
    """The summary of the folds, from those of all.

    Returns:
        Mean `top1` and `top5` of the folds, in 0...1, and the deviation of
        `top1` between them. The rest is of all images, each as it was
        predicted when it was for validation.
    """
    top1 = [summary["top1"] for summary in summaries]
    confusion = np.sum([summary["confusion"] for summary in summaries], axis=0)
    classes = [
        {
            "name": row["name"],
            "validation_images": int(images),
            "accuracy": accuracy if images else None,
        }
        for row, images, accuracy in zip(
            summaries[0]["classes"],
            confusion.sum(axis=1),
            class_accuracies(confusion).tolist(),
            strict=True,
        )
    ]
    return {
        "top1": float(np.mean(top1)),
        "top1_deviation": float(np.std(top1, ddof=1)),
        "top5": float(np.mean([summary["top5"] for summary in summaries])),
        "balanced_accuracy": balanced_accuracy(confusion),
        "confusion": confusion.tolist(),
        "classes": classes,
        "folds": top1,
    }
