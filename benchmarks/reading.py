"""Reading: records per second, and what each stage costs an image.

A dataset of 110 kB JPEGs of 500 x 375 pixels, like ImageNet's, is read in
random order from the page cache: as image files, and as TFRecord and array
record files of TensorFlow Datasets; beside them, TFRecord files in their order
through tf.data's own reader. The stages are those of `s24-224`. Times are
processor times of all threads, which other work on the machine hardly changes;
records per second are not.
"""

import io
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from benchmarks.command import Count, Output, Rounds, benchmark_app, run
from benchmarks.image_files import detailed_image, encode
from benchmarks.interleave import Timing
from benchmarks.results import Rows, show, write
from training.data.augmentation import random_resized_crop
from training.data.datasets import Examples, load
from training.data.pipeline import (
    index_at,
    mixing,
    training_batches,
    training_transform,
)
from training.recipe import override
from training.recipes import RECIPES

CLASSES = 10
DISTINCT = 200  # images, which the records repeat
THREADS = (1, 2, 8, 16)
BATCH = 64
RECIPE = override(RECIPES["s24-224"], global_batch_size=BATCH).resolved()


def jpegs() -> Iterator[bytes]:
    """Detailed images, without end."""
    rng = np.random.default_rng(0)
    images = [detailed_image(rng, noise=20) for _ in range(DISTINCT)]
    return itertools.cycle([encode(i, "JPEG", quality=90) for i in images])


def write_datasets(folder: Path, count: int) -> None:
    """Writes the dataset as files and in both formats of records."""
    for i, image in zip(range(count), jpegs(), strict=False):
        path = folder / "files/train" / f"{i % CLASSES}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
    (folder / "files/validation").mkdir()  # so that all are for training
    for file_format in ("tfrecord", "array_record"):
        tfds.dataset_builders.store_as_tfds_dataset(
            "made",
            "1.0.0",
            tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(num_classes=CLASSES),
                }
            ),
            {
                "train": (
                    (i, {"image": io.BytesIO(image), "label": i % CLASSES})
                    for i, image in zip(range(count), jpegs(), strict=False)
                )
            },
            data_dir=folder / file_format,
            file_format=file_format,
        )


def by_position(
    examples: Examples, change: Callable[[Any, Any], Any], threads: int
) -> tf.data.Dataset:
    """Batches of one number for each image, in the order of training."""

    def example(place: tf.Tensor) -> tf.Tensor:
        image, _ = examples.read(index_at(place, examples, RECIPE))
        return change(image, tf.stack([tf.constant(0, tf.int64), place]))

    return (
        tf.data.Dataset.range(2**62)
        .map(example, threads, deterministic=True)
        .batch(BATCH)
    )


def size(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    return tf.strings.length(image)


def in_order(folder: Path, threads: int) -> tf.data.Dataset:
    """The sizes of the images of TFRecord files in their order."""
    files = sorted(map(str, folder.rglob("*.tfrecord-*")))
    features = {"image": tf.io.FixedLenFeature((), tf.string)}
    return (
        tf.data.TFRecordDataset(files, num_parallel_reads=threads)
        .map(
            lambda record: size(
                tf.io.parse_single_example(record, features)["image"], record
            ),
            threads,
        )
        .repeat()
        .batch(BATCH)
    )


def when_idle() -> float:
    """Processor time so far, once no thread fills a buffer any more."""
    before = -1.0
    while (now := time.process_time()) - before > 0.002:
        before = now
        time.sleep(0.1)
    return now


def measured(
    datasets: dict[str, tf.data.Dataset], images: int, threads: int, rounds: int
) -> dict[str, tuple[float, float]]:
    """Median seconds and processor seconds for an image, in turns."""
    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    iterators = {
        name: iter(dataset.with_options(options))
        for name, dataset in datasets.items()
    }
    batches = max(1, images // BATCH)
    found: dict[str, list[tuple[float, float]]] = {
        name: [] for name in datasets
    }
    for _ in range(rounds + 1):  # the first is a warm-up
        for name, iterator in iterators.items():
            # Buffers are full before and after.
            processor, start = when_idle(), time.perf_counter()
            for _ in range(batches):
                next(iterator)
            wall = time.perf_counter() - start
            found[name].append((wall, when_idle() - processor))
    return {
        name: tuple(
            Timing(t).median / batches / BATCH
            for t in zip(*runs[1:], strict=True)
        )
        for name, runs in found.items()
    }


def record_rows(folder: Path, images: int, rounds: int) -> Rows:
    """Records per second in each form, by threads."""
    sets = {
        name: load(data, "train", data_dir)
        for name, data, data_dir in (
            ("image files", f"folder:{folder}/files", None),
            ("TFRecord", "made", folder / "tfrecord"),
            ("array record, in Python", "made", folder / "array_record"),
        )
    }
    forms: dict[str, Callable[[int], tf.data.Dataset]] = {
        name: lambda threads, examples=examples: by_position(
            examples, size, threads
        )
        for name, examples in sets.items()
    }
    forms["TFRecord, in order"] = lambda threads: in_order(
        folder / "tfrecord", threads
    )
    rows: dict[str, dict[str, float]] = {name: {} for name in forms}
    for threads in THREADS:
        datasets = {name: make(threads) for name, make in forms.items()}
        times = measured(datasets, images, threads, rounds)
        column = f"records/s, {threads} thread{'s' * (threads > 1)}"
        for name, (wall, processor) in times.items():
            rows[name][column] = 1 / wall
            if threads == THREADS[-1]:
                rows[name]["core µs per record"] = 1e6 * processor
    return rows


def stage_rows(folder: Path, images: int, rounds: int) -> Rows:
    """What each stage of `s24-224` adds to the time of an image."""
    examples = load("made", "train", folder / "tfrecord")
    augment = training_transform(RECIPE)
    cores = os.cpu_count() or 1

    def crop(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        return random_resized_crop(image, seed, RECIPE.image_size)

    def corner(change: Callable[[Any, Any], Any]) -> tf.data.Dataset:
        # Of an image, nothing is copied into a batch.
        return by_position(
            examples, lambda image, seed: change(image, seed)[0, 0, 0], cores
        )

    stages = {
        "read": by_position(examples, size, cores),
        "decode, crop, resize": corner(crop),
        "flip, RandAugment, erase": corner(augment),
        "copy to a batch": by_position(examples, augment, cores),
        "mix, copy to a device's batch": training_batches(
            examples, augment, mixing(RECIPE, CLASSES), RECIPE
        ),
    }
    rows: dict[str, dict[str, float]] = {}
    before = 0.0
    times = measured(stages, images, cores, rounds)
    for name, (_, processor) in times.items():
        rows[name] = {"core ms per image": 1e3 * (processor - before)}
        before = processor
    rows["all"] = {"core ms per image": 1e3 * before}
    return rows


app = benchmark_app("reading", __doc__)


@app.default
def main(
    *,
    records: Count = 20_000,
    images: Count = 1024,
    folder: Path | None = None,
    rounds: Rounds = 3,
    output: Output = None,
) -> None:
    """Measures reading and the stages of the input pipeline.

    Args:
        records: Records of the dataset, of 110 kB, which is written twice
            over, and as files.
        images: Images per round; ten times as many where they are only read.
        folder: Where the dataset is written, and kept; by default, a temporary
            folder.
    """
    # As `make_strategy` does where GPUs train.
    tf.config.threading.set_intra_op_parallelism_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        place = folder or Path(temporary)
        if not (place / "array_record").exists():
            write_datasets(place, records)
        tables = {
            "Records of 110 kB": record_rows(place, 10 * images, rounds),
            "Stages of s24-224": stage_rows(place, images, rounds),
        }
    for title, rows in tables.items():
        show(title, rows)
    write(tables, output, rounds)


if __name__ == "__main__":
    run(app)
