"""Datasets as TensorFlow functions of an example's number."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_cait.datasets import open_dataset
from keras_cait.decoding.readable import readable


@dataclass(frozen=True)
class Examples:
    """A numbered set of labeled images.

    Attributes:
        count: number of examples.
        class_names: names by label.
        read: function of an int64 scalar tensor below `count` to `(image,
            label)`. The image is a `(height, width, 3)` uint8 tensor, RGB in
            0...255, or the scalar string of an encoded file. The label is an
            int64 scalar; or, in a dataset with any number of labels per image
            (ImageNet-ReaL, only for evaluation), int64 `(classes,)` of 0 and 1.
        name: function of an int to the example's name in messages.
        unreadable: names of images that were left out.
    """

    count: int
    class_names: tuple[str, ...]
    read: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
    name: Callable[[int], str] = str
    unreadable: tuple[str, ...] = ()

    def without(self, numbers: set[int]) -> "Examples":
        """A copy with the given examples replaced by the next other one.

        Args:
            numbers: examples to leave out.

        Raises:
            ValueError: these are all examples.

        Example:
        >>> few = Examples(3, ("a",), lambda i: (i, i)).without({1, 2})
        >>> [int(few.read(tf.constant(i, tf.int64))[0]) for i in range(3)]
        [0, 0, 0]
        """
        if not numbers:
            return self
        if len(numbers) >= self.count:
            raise ValueError(f"None of the {self.count} images can be read.")
        bad = sorted(numbers)
        good = [self.next_without(number, numbers) for number in bad]

        def read(index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            at = tf.equal(index, tf.constant(bad, tf.int64))
            other = tf.reduce_sum(tf.where(at, tf.constant(good, tf.int64), 0))
            return self.read(tf.where(tf.reduce_any(at), other, index))

        return replace(self, read=read)

    def next_without(self, number: int, numbers: set[int]) -> int:
        """The first example from a number on, cyclically, not in `numbers`."""
        while number in numbers:
            number = (number + 1) % self.count
        return number


def load(
    data: str,
    split: str,
    data_dir: str | Path | None = None,
    max_unreadable: int = 0,
) -> Examples:
    """Loads a dataset.

    Args:
        data, split, data_dir: as of `keras_cait.datasets.open_dataset`.
        max_unreadable: as of `keras_cait.decoding.readable`.

    Raises:
        ValueError: as of `open_dataset` and `readable`.
        ImportError: as of `open_dataset`.

    Example:
    >>> load("digits", "validation").count
    1000
    """
    dataset = readable(open_dataset(data, split, data_dir), max_unreadable)
    if dataset.files:
        paths = tf.constant([str(file) for file in dataset.files])
        labels = tf.constant(dataset.labels, tf.int64)
        return Examples(
            len(dataset),
            dataset.class_names,
            lambda index: (tf.io.read_file(paths[index]), labels[index]),
            dataset.name,
            dataset.unreadable,
        )
    image, label = dataset[0]
    if isinstance(image, np.ndarray):  # small enough to be held in memory
        images = tf.constant(np.stack([image for image, _ in dataset]))
        labels = tf.constant([label for _, label in dataset], tf.int64)
        return Examples(
            len(dataset),
            dataset.class_names,
            lambda index: (images[index], labels[index]),
            dataset.name,
            dataset.unreadable,
        )

    label_shape = np.shape(label)

    def record(index: np.ndarray) -> tuple[bytes | np.ndarray, np.ndarray]:
        image, label = dataset[int(index)]
        return image, np.asarray(label, np.int64)

    def read(index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image, label = tf.numpy_function(
            record, [index], (tf.string, tf.int64), stateful=False
        )
        return tf.ensure_shape(image, ()), tf.ensure_shape(label, label_shape)

    return Examples(
        len(dataset),
        dataset.class_names,
        read,
        dataset.name,
        dataset.unreadable,
    )


def check_classes(classes: int, examples: Examples, data: str) -> None:
    """Checks that a model has a dataset's classes, by their number.

    Raises:
        ValueError: the numbers differ.

    Example:
    >>> check_classes(10, load("digits", "validation"), "digits")
    """
    if classes != len(examples.class_names):
        raise ValueError(
            f"The model has {classes} classes, but {data} has "
            f"{len(examples.class_names)}. Choose a dataset with the classes "
            "that the model was trained on."
        )
