"""Pipeline: training images per second of keras-cait and of timm's loader.

Both run DeiT's recipe on the same 500 x 375 JPEG files: random-resized crop to
224, flip, RandAugment `rand-m9-mstd0.5-inc1`, normalization, random erasing,
Mixup or CutMix, to float32 batches. timm does it as in its training script:
workers mix batches of 8 bits, and its prefetcher normalizes and erases. As
where GPUs train, an operation has one thread. Each has a process of its own
with all cores, timm with one worker per core, in interleaved rounds. Images
per second and core come from the processor time of all processes and threads,
which other work on the machine hardly changes.
"""

import importlib.util
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.command import Count, Output, Rounds, benchmark_app, run
from benchmarks.interleave import Timing, relative
from benchmarks.results import Rows, show, write

SIZE = 224
CLASSES = 1000


def keras_cait_batches(folder: Path, batch_size: int) -> Iterator[Any]:
    import tensorflow as tf

    from keras_cait.preprocessing import IMAGENET_MEAN, IMAGENET_STD
    from training.data.datasets import Examples
    from training.data.pipeline import (
        mixing,
        training_batches,
        training_transform,
    )
    from training.recipes import RECIPES

    # As `make_strategy` does where GPUs train.
    tf.config.threading.set_intra_op_parallelism_threads(1)
    recipe = replace(
        RECIPES["s24-224"],
        global_batch_size=batch_size,
        mixing_batch_size=batch_size,
        repeated_augmentation=1,
    )
    paths = tf.constant(sorted(map(str, folder.glob("*/*.jpg"))))
    examples = Examples(
        len(paths),
        tuple(map(str, range(CLASSES))),
        lambda index: (
            tf.io.read_file(paths[index]),
            tf.math.floormod(index, CLASSES),
        ),
    )
    augment = training_transform(recipe)
    # By rows: broadcasting three channels takes several times as long.
    mean, std = (
        255.0 * tf.tile(tf.constant(values), [SIZE])
        for values in (IMAGENET_MEAN, IMAGENET_STD)
    )

    def normalized(
        encoded: Any, seed: Any
    ) -> Any:  # the model does it in training
        rows = tf.reshape(augment(encoded, seed), (SIZE, -1))
        return tf.reshape((rows - mean) / std, (SIZE, SIZE, 3))

    mix = mixing(recipe, CLASSES)
    return iter(training_batches(examples, normalized, mix, recipe))


def timm_batches(folder: Path, batch_size: int) -> Iterator[Any]:
    import torch
    from timm.data import (
        FastCollateMixup,
        ImageDataset,
        auto_augment,
        create_loader,
    )

    torch.set_num_threads(1)
    # Fork the workers, the default on Linux, although this one was spawned.
    multiprocessing.set_start_method("fork", force=True)
    # For 1 image in 650, timm asks for 0 bits, which Pillow 13 refuses.
    posterize = auto_augment.NAME_TO_OP["PosterizeIncreasing"]
    auto_augment.NAME_TO_OP["PosterizeIncreasing"] = (
        lambda image, bits, **kwargs: posterize(image, max(bits, 1), **kwargs)
    )
    loader = create_loader(
        ImageDataset(str(folder)),
        (3, SIZE, SIZE),
        batch_size,
        is_training=True,
        re_prob=0.25,
        re_mode="pixel",
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic",
        num_workers=os.cpu_count(),
        device=torch.device("cpu"),
        collate_fn=FastCollateMixup(
            0.8, 1.0, label_smoothing=0.1, num_classes=CLASSES
        ),
    )

    def batches() -> Iterator[Any]:
        while True:
            yield from loader

    return batches()


# The package a pipeline needs, and a function that returns its batches.
PIPELINES: dict[str, tuple[str, Callable[[Path, int], Iterator[Any]]]] = {
    "keras-cait": ("tensorflow", keras_cait_batches),
    "timm": ("timm", timm_batches),
}


def write_images(folder: Path, count: int) -> None:
    """Writes detailed JPEG files."""
    import numpy as np

    from benchmarks.image_files import detailed_image

    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / str(i % 10) / f"{i}.jpg"
        path.parent.mkdir(exist_ok=True)
        detailed_image(rng, noise=12).save(path, quality=90)


def processor_seconds(group: int) -> float:
    """User and system time of a process group so far."""
    total = 0
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group:
            total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def serve(
    connection: Connection,
    make_batches: Callable[[Path, int], Iterator[Any]],
    folder: Path,
    batch_size: int,
) -> None:
    """Runs in the process of a pipeline: some batches per message."""
    os.setpgrp()
    batches = make_batches(folder, batch_size)
    for _ in range(3):
        next(batches)
    connection.send(None)
    while count := connection.recv():
        start = time.perf_counter()
        cpu = processor_seconds(os.getpgrp())
        for _ in range(count):
            next(batches)
        seconds = time.perf_counter() - start
        connection.send((seconds, processor_seconds(os.getpgrp()) - cpu))


class Times(NamedTuple):
    """Of an image: on the clock, and of the processor."""

    wall: Timing
    processor: Timing


def measure(
    folder: Path, batch_size: int, batches: int, rounds: int
) -> dict[str, Times]:
    """Times of the pipelines whose package is installed."""
    spawn = multiprocessing.get_context("spawn")
    found: dict[str, list[tuple[float, float]]] = {}
    for _ in range(rounds):
        for name, (package, make_batches) in PIPELINES.items():
            if importlib.util.find_spec(package) is None:
                continue
            # One process at a time: a pipeline prefetches while it waits.
            connection, child = spawn.Pipe()
            process = spawn.Process(
                target=serve,
                args=(child, make_batches, folder, batch_size),
            )
            process.start()
            child.close()
            connection.recv()
            connection.send(batches)
            seconds, cpu = connection.recv()
            connection.send(0)
            process.join()
            images = batches * batch_size
            found.setdefault(name, []).append((seconds / images, cpu / images))
    return {
        name: Times(*map(Timing, zip(*times, strict=True)))
        for name, times in found.items()
    }


def rows(times: dict[str, Times]) -> Rows:
    """Images per second, and per second and core, relative to timm."""
    timm = times["timm"].processor if "timm" in times else "not installed"
    return {
        name: {
            "images/s": 1 / wall.median,
            **processor.columns("images/s per core", lambda s: 1 / s),
            "timm = 1": relative(timm, processor),
        }
        for name, (wall, processor) in times.items()
    }


app = benchmark_app("pipeline", __doc__)


@app.default
def main(
    *,
    batch_size: Count = 64,
    batches: Count = 12,
    rounds: Rounds = 5,
    output: Output = None,
) -> None:
    """Times the input pipelines on generated images.

    Args:
        batch_size: Images per batch.
        batches: Batches per round.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # An epoch of timm's loader must last a whole round.
        write_images(folder, batch_size * (batches + 8))
        times = measure(folder, batch_size, batches, rounds)
    title = f"Training images, batch {batch_size}"
    tables = {title: rows(times)}
    show(title, tables[title])
    write(tables, output, rounds)


if __name__ == "__main__":
    run(app)
