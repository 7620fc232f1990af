"""Datasets without their unreadable images."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import tensorflow as tf

from keras_cait.datasets import Dataset
from keras_cait.decoding import decode_image

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

    def is_readable(index: int) -> bool:
        try:
            image, _ = dataset[index]
            if isinstance(image, bytes):
                _decode(image)
            return True
        except (OSError, tf.errors.OpError):
            return False

    print(f"Reading {len(dataset):,} images once, to leave out damaged ones")
    with ThreadPoolExecutor() as threads:
        found = list(threads.map(is_readable, range(len(dataset))))
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
