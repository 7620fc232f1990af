"""Trains the cells of a study, one at a time or many, and resumes them."""

import gc
import json
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_cait.baselines import ResidualBlock, ViT
from keras_cait.files import read_json, write_text
from training.data.datasets import load
from training.data.pipeline import (
    evaluation_transform,
    naming_unreadable,
    steps_per_epoch,
    training_data,
    validation_data,
)
from training.loop.checkpoints import Checkpoints
from training.loop.distillation import make_loss
from training.loop.interruption import lost_workers
from training.loop.optimizers import make_optimizer
from training.loop.stacking import Stack, stacked
from training.loop.strategies import (
    check_alike,
    is_chief,
    make_strategy,
    worker_count,
)
from training.loop.trainer import Trainer
from training.recipe import Recipe
from training.study.cells import Cell


def trainings(
    jobs: Sequence[tuple[Cell, int]],
    folder: Path,
    data_dir: Path | None = None,
    strategy: tf.distribute.Strategy | None = None,
    processes: int = 1,
) -> Iterator[tuple[Cell, int, dict[str, Any]]]:
    """Runs trainings and yields their results as they end.

    Args:
        jobs: pairs of a cell and a seed.
        folder, data_dir, strategy: as for `train`.
        processes: trainings at a time. More than one run on the CPU, with one
            core each: small models are just as fast on one as on two.

    Yields:
        Cell, seed and result.

    Raises:
        ChildProcessError: one of many trainings was killed.
    """
    if processes == 1:
        for cell, seed in jobs:
            yield cell, seed, train(cell, seed, folder, data_dir, strategy)
        return
    with ProcessPoolExecutor(
        processes, get_context("spawn"), on_one_core
    ) as pool:
        running = {
            pool.submit(train, cell, seed, folder, data_dir): (cell, seed)
            for cell, seed in jobs
        }
        try:
            for training in as_completed(running):
                yield *running[training], training.result()
        except BrokenProcessPool:
            raise ChildProcessError(
                "A training was killed, perhaps for lack of memory. Resume "
                f"with fewer at a time: --processes {processes // 2}."
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def on_one_core() -> None:
    """Prepares a process; Ctrl-C lets it finish its current training."""
    threading.Thread(target=end_with_study, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tf.config.set_visible_devices([], "GPU")  # each would take all its memory
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def end_with_study() -> None:
    """Ends this process when the study is killed, which another may resume."""
    if study := parent_process():
        study.join()
        os._exit(1)


@lost_workers()
def train(
    cell: Cell,
    seed: int,
    folder: Path,
    data_dir: Path | None = None,
    strategy: tf.distribute.Strategy | None = None,
    save_seconds: float = 600.0,
) -> dict[str, Any]:
    """Trains one cell with one seed, unless its result exists.

    Args:
        cell: the cell.
        seed: the seed of the recipe.
        folder: gets the result, `NAME-SEED.json`, and checkpoints until the
            training is finished.
        data_dir: folder in which TensorFlow Datasets keeps its files.
        strategy: devices; `None` is one.
        save_seconds: seconds between checkpoints, at the end of an epoch.

    Returns:
        The cell; `top1` of the EMA weights and `raw_top1` on the validation
        images, in 0...1; `loss` and `accuracy` of the last epoch of training;
        `failed_at_step`, `None` unless a loss or gradient was not finite, which
        ends the training with both top-1 `None`; `gammas`, the mean size of the
        multipliers of each block's two branches; `minutes` since the last
        start; versions.

    Raises:
        ValueError: as in `finished` and `check_alike`.
    """
    if result := finished(cell, seed, folder):
        return result
    began = time.perf_counter()
    recipe = replace(cell.recipe, seed=seed)
    distribution = strategy or make_strategy("one")
    recipe.check_devices(
        distribution.num_replicas_in_sync, worker_count(distribution)
    )
    keras.backend.clear_session()
    gc.collect()  # the graphs of the previous cell
    keras.utils.set_random_seed(seed)
    keras.config.set_dtype_policy(recipe.precision)
    examples = load(recipe.data, "train", data_dir, **recipe.split())
    validation = load(recipe.data, "validation", data_dir, **recipe.split())
    classes = len(examples.class_names)
    steps = steps_per_epoch(examples, recipe)

    def build() -> keras.Model:
        return stacked(
            ViT(**cell.model, classes=classes, classifier_activation=None)
        )

    with distribution.scope():
        model, ema_model = build(), build()
        loss = make_loss(recipe, classes)
        optimizer = make_optimizer(recipe, model, steps)
    trainer = Trainer(recipe, distribution, model, ema_model, optimizer, loss)
    unfinished = folder / f"{cell.name}-{seed}"
    unfinished.mkdir(parents=True, exist_ok=True)
    with Checkpoints(
        trainer.state, unfinished, is_chief(distribution), 1
    ) as checkpoints:
        checkpoints.restore()
        check_alike(
            distribution,
            {"settings": setting(cell, seed), "step": trainer.step},
        )
        saved = time.perf_counter()
        batches = training_data(
            recipe, distribution, examples, trainer.step, unfinished
        )
        means = trainer.means()
        while trainer.step < recipe.epochs * steps and trainer.nonfinite < 0:
            trainer.reset_means()
            for _ in range(steps):
                trainer.train_step(*next(batches))
            means = trainer.means()
            if time.perf_counter() - saved >= save_seconds:
                saved = time.perf_counter()
                checkpoints.save(trainer.step)
    result = {
        "row": cell.row,
        "column": cell.column,
        "seed": seed,
        "top1": None,
        "raw_top1": None,
        "loss": finite(means["loss"]),
        "accuracy": finite(means["accuracy"]),
        "failed_at_step": None,
        "gammas": gammas(ema_model),
        **setting(cell, seed),
    }
    if trainer.nonfinite >= 0:
        result["failed_at_step"] = trainer.nonfinite
    else:
        with naming_unreadable(validation, evaluation_transform(recipe)):
            accuracy = trainer.evaluate(
                validation_data(recipe, distribution, validation)
            )
        result["top1"] = accuracy["val_accuracy"]
        result["raw_top1"] = accuracy["val_raw_accuracy"]
    result["minutes"] = (time.perf_counter() - began) / 60
    result["keras"] = keras.__version__
    result["tensorflow"] = tf.__version__
    if is_chief(distribution):
        write_text(
            result_file(cell, seed, folder), json.dumps(result, indent=2) + "\n"
        )
        shutil.rmtree(unfinished)
    return result


def check_results(jobs: Sequence[tuple[Cell, int]], folder: Path) -> None:
    """Checks that the results in a folder are those of a study.

    Args:
        jobs: as in `trainings`.
        folder: folder of the results.

    Raises:
        ValueError: one is of another study, or as in `finished`.
    """
    names = {cell.name for cell, _ in jobs}
    for file in folder.glob("*-[0-9]*.json"):
        if file.stem.rpartition("-")[0] not in names:
            raise ValueError(
                f"{file} is the result of another study. Choose another "
                "--output."
            )
    for cell, seed in jobs:
        finished(cell, seed, folder)


def finished(cell: Cell, seed: int, folder: Path) -> dict[str, Any] | None:
    """The result of a finished training, as in `train`.

    Raises:
        ValueError: its file is damaged, or the result of other settings.
    """
    path = result_file(cell, seed, folder)
    if not path.exists():
        return None
    ours = setting(cell, seed)
    result = read_json(path, [*ours, "row", "column", "top1"])
    # Earlier versions lack fields, and trained with what is their default.
    result["recipe"] = asdict(Recipe()) | result["recipe"]
    del result["recipe"]["variant"]
    if any(result[key] != value for key, value in ours.items()):
        raise ValueError(
            f"{path} is the result of other settings. Choose another "
            "--output, or delete it."
        )
    return result


def result_file(cell: Cell, seed: int, folder: Path) -> Path:
    return folder / f"{cell.name}-{seed}.json"


def setting(cell: Cell, seed: int) -> dict[str, Any]:
    """What a result depends on, as JSON holds it."""
    recipe = asdict(replace(cell.recipe, seed=seed))
    del recipe["variant"]  # the architecture is the cell's
    return json.loads(json.dumps({"model": cell.model, "recipe": recipe}))


def finite(value: float) -> float | None:
    """The value, or `None`, which JSON can hold."""
    return value if math.isfinite(value) else None


def gammas(model: keras.Model) -> list[list[float]] | None:
    """Mean size of the multipliers of the branches, a pair per block."""
    pairs = []
    for layer in model.layers:
        if isinstance(layer, Stack):
            weights = dict(zip(layer.paths, layer.stacks, strict=True))
        elif isinstance(layer, ResidualBlock):
            weights = {w.path: w for w in layer.weights}
        else:
            continue
        sizes = [
            np.atleast_2d(abs(keras.ops.convert_to_numpy(weight))).mean(axis=-1)
            for path, weight in weights.items()
            if "layer_scale_" in path
        ]
        pairs += np.transpose(sizes).tolist()
    return pairs or None
