"""Datasets without their unreadable images."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import tensorflow as tf

from keras_cait.datasets import Dataset
from keras_cait.decoding import decode_image
from keras_cait.records import Records

# Prepared once for all datasets, which takes over a second.
_decode = tf.function(
    decode_image, input_signature=[tf.TensorSpec((), tf.string)]
)


def readable(dataset: Dataset, max_unreadable: int) -> Dataset:
    """A dataset without the images that cannot be read, which are printed.

    Every image is decoded once, as training and served models do it.

    Args:
        dataset: the dataset.
        max_unreadable: maximum number of images to leave out. With 0, nothing
            is read here.

    Raises:
        ValueError: more images cannot be read, or none can. The message names
            them.

    Example:
    >>> from keras_cait.datasets import open_dataset
    >>> digits = open_dataset("digits", "validation")
    >>> readable(digits, max_unreadable=1).unreadable
    Reading 1,000 images once, to leave out damaged ones
    ()
    """
    if max_unreadable == 0:
        return dataset

    read: Callable[[int], Any] = dataset.read
    if dataset.records:  # whose checksums only TensorFlow compares
        read = reader_of_records(dataset.records)

    def is_readable(index: int) -> bool:
        try:
            image, _ = read(index)
            if not isinstance(image, np.ndarray):
                _decode(image)
            return True
        except (OSError, tf.errors.OpError):
            return False

    print(f"Reading {len(dataset):,} images once, to leave out damaged ones")
    first, *others = range(len(dataset))
    with ThreadPoolExecutor() as threads:
        # The first alone: at the same time, every thread would trace the graph.
        found = [is_readable(first), *threads.map(is_readable, others)]
    bad = [dataset.name(i) for i, is_good in enumerate(found) if not is_good]
    check_readable(bad, len(dataset), max_unreadable)
    for name in bad:
        print(f"Skipping an unreadable image: {name}", flush=True)
    good = [i for i, is_good in enumerate(found) if is_good]
    return replace(
        dataset,
        count=len(good),
        read=lambda index: dataset.read(good[index]),
        name=lambda index: dataset.name(good[index]),
        files=dataset.files.select(good if dataset.files else []),
        labels=tuple(dataset.labels[i] for i in good if dataset.labels),
        records=dataset.records and dataset.records.select(good),
        unreadable=tuple(bad),
    )


def check_readable(bad: list[str], count: int, max_unreadable: int) -> None:
    """Checks that not too many images cannot be read.

    Args:
        bad: names of those that cannot.
        count: number of all images.
        max_unreadable: maximum number of bad ones.

    Raises:
        ValueError: there are more, or nothing else.

    Example:
    >>> check_readable(["cat.jpg"], count=2, max_unreadable=1)
    """
    if len(bad) > max_unreadable:
        raise ValueError(
            f"{len(bad)} images cannot be read, more than max_unreadable="
            f"{max_unreadable}. Replace or remove them: {', '.join(bad)}"
        )
    if len(bad) == count:
        raise ValueError(f"None of the {count} images can be read.")


def reader_of_records(
    records: Records,
) -> Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
    """A function of an int64 scalar (tensor) to image and label of that record.

    It is all TensorFlow operations: Python, one thread at a time, reads fewer
    records than eight GPUs train.
    """
    files, file_of, start_of = map(
        tf.constant, (records.files, records.file_of, records.start_of)
    )

    def read(index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        from_there = tf.raw_ops.TFRecordDatasetV2(
            filenames=files[file_of[index]][None],
            compression_type="",
            buffer_size=tf.constant(0, tf.int64),
            byte_offsets=start_of[index][None],
        )
        record = tf.data.experimental.from_variant(
            from_there, tf.TensorSpec((), tf.string)
        )
        example = tf.io.parse_single_example(
            record.take(1).get_single_element(),
            {
                "image": tf.io.FixedLenFeature((), tf.string),
                "label": tf.io.FixedLenFeature((), tf.int64),
            },
        )
        return example["image"], example["label"]

    return read
