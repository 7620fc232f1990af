"""Datasets as TensorFlow functions of an example's number."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from keras_cait.conversion import listed
from keras_cait.datasets import MAX_COMPARED, Dataset, copies, open_dataset
from keras_cait.decoding.readable import readable, reader_of_records
from keras_cait.files import GRAPH_SUFFIXES, IMAGE_SUFFIXES
from keras_cait.folders import ImagePaths

# From the number of an example, an int64 scalar, to its image and label.
Read = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


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
        labels: the labels, where they are known without reading the images;
            otherwise empty.
        files: the image files of a folder, otherwise empty.
    """

    count: int
    class_names: tuple[str, ...]
    read: Read
    name: Callable[[int], str] = str
    unreadable: tuple[str, ...] = ()
    labels: tuple[int, ...] = ()
    files: ImagePaths = field(default_factory=ImagePaths)

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
    **part: Any,
) -> Examples:
    """Loads a dataset.

    Args:
        data, split, data_dir: as in `keras_cait.datasets.open_dataset`.
        max_unreadable: as in `keras_cait.decoding.readable`.
        **part: `validation_fraction` and `fold`, as in `open_dataset`.

    Raises:
        ValueError: as in `open_dataset` and `readable`.
        ImportError: as in `open_dataset`.

    Example:
    >>> load("digits", "validation").count
    1000
    """
    dataset = readable(
        open_dataset(data, split, data_dir, **part), max_unreadable
    )
    labels = dataset.labels
    if dataset.files:
        read = reader_of_files(dataset.files, labels)
    elif dataset.records:
        read = reader_of_records(dataset.records)
    elif isinstance(dataset[0][0], np.ndarray):  # small enough for memory
        labels = tuple(int(label) for _, label in dataset)
        images = np.stack([image for image, _ in dataset])
        read = reader_of_arrays(images, labels)
    else:
        read = reader_in_python(dataset)
    return Examples(
        len(dataset),
        dataset.class_names,
        read,
        dataset.name,
        dataset.unreadable,
        labels,
        dataset.files,
    )


def reader_in_python(dataset: Dataset) -> Read:
    """Reads an encoded image in Python."""
    label_shape = np.shape(dataset[0][1])

    def record(index: np.ndarray) -> tuple[bytes | np.ndarray, np.ndarray]:
        image, label = dataset[int(index)]
        return image, np.asarray(label, np.int64)

    def read(index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image, label = tf.numpy_function(
            record, [index], (tf.string, tf.int64), stateful=False
        )
        return tf.ensure_shape(image, ()), tf.ensure_shape(label, label_shape)

    return read


def reader_of_files(files: ImagePaths, labels: Sequence[int]) -> Read:
    """Reads a file."""
    # A tensor of a million paths would take ten times as much memory.
    names = tf.constant(files.text)
    starts, lengths = map(tf.constant, (files.starts, files.lengths))
    folder = os.fsencode(os.path.join(files.folder, ""))
    numbers = tf.constant(np.array(labels))

    def read(index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        name = tf.strings.substr(names, starts[index], lengths[index])
        return tf.io.read_file(folder + name), numbers[index]

    return read


def reader_of_arrays(images: np.ndarray, labels: Sequence[int]) -> Read:
    """Takes an image from memory."""
    pixels = tf.constant(images)
    numbers = tf.constant(labels, tf.int64)
    return lambda index: (pixels[index], numbers[index])


def check_training(examples: Examples, validation: Examples, data: str) -> None:
    """Checks that a classifier can learn from examples.

    Raises:
        ValueError: there are fewer than two classes, validation has others, or
            one has no training images.

    Example:
    >>> digits = [load("digits", split) for split in ("train", "validation")]
    >>> check_training(*digits, "digits")
    """
    names = examples.class_names
    if len(names) < 2:
        raise ValueError(
            f"The class of {data} would be {' and '.join(names)}. Expected a "
            "subfolder for each of two or more classes, or folders train and "
            "validation that have these."
        )
    if names != validation.class_names:
        raise ValueError(
            f"{data} has the classes {listed(names)} for training, but "
            f"{listed(validation.class_names)} for validation. Expected the "
            "same, in the same order."
        )
    if empty := [n for n, count in class_counts(examples).items() if not count]:
        raise ValueError(
            f"{data} has no training images of {', '.join(empty)}. Add some "
            f"({', '.join(GRAPH_SUFFIXES)}), or remove the folder."
        )


def content(examples: Examples) -> str:
    """What identifies a dataset and its state, without reading its images.

    It has the number of images, the classes, and a hash of their names and
    those of the files.

    Example:
    >>> content(Examples(3, ("cat", "dog"), lambda i: (i, i)))
    '3 images of cat, dog with names cd73b277'
    """
    names = json.dumps(examples.class_names).encode() + examples.files.text
    return (
        f"{examples.count:,} images of {listed(examples.class_names)} "
        f"with names {hashlib.sha256(names).hexdigest()[:8]}"
    )


def with_labels(examples: Examples) -> Examples:
    """The examples with labels, which are read where they are not known.

    Damaged records, which training skips, have none.

    Example:
    >>> numbers = Examples(3, ("even", "odd"), lambda i: (i, i % 2))
    >>> with_labels(numbers).labels
    Reading the labels of 3 images
    (0, 1, 0)
    """
    if examples.labels:
        return examples
    print(f"Reading the labels of {examples.count:,} images", flush=True)
    batches = (
        tf.data.Dataset.range(examples.count)
        .map(lambda index: examples.read(index)[1], tf.data.AUTOTUNE)
        .ignore_errors()
        .batch(1024)
        .as_numpy_iterator()
    )
    return replace(examples, labels=tuple(np.concatenate([*batches]).tolist()))


def class_counts(examples: Examples) -> dict[str, int]:
    """Images per class; empty where the labels are not known.

    Example:
    >>> class_counts(load("digits", "validation"))["7"]
    100
    """
    if not examples.labels:
        return {}
    names = examples.class_names
    counts = np.bincount(examples.labels, minlength=len(names)).tolist()
    return dict(zip(names, counts, strict=True))


def notes_on_split(examples: Examples, validation: Examples) -> list[str]:
    """What a person should know of a split before training, a line each.

    Example:
    >>> notes_on_split(load("digits", "train"), load("digits", "validation"))
    []
    """
    notes = []
    missing = [n for n, count in class_counts(validation).items() if not count]
    if missing:
        notes.append(
            f"No validation image of {', '.join(missing)}: accuracy does not "
            "include them. A class needs two different images."
        )
    counts = class_counts(examples)
    least, most = (
        order(counts, key=counts.__getitem__, default="")
        for order in (min, max)
    )
    if counts and counts[most] >= 2 * counts[least]:
        notes.append(
            f"Classes have {counts[least]} ({least}) to {counts[most]} "
            f"({most}) training images. With --balance-classes, all classes "
            "count the same."
        )
    if len(examples.files) + len(validation.files) > MAX_COMPARED:
        return notes
    if unread := unread_suffixes(examples, validation):
        notes.append(
            f"Images that training cannot read: {unread.total()} "
            f"({', '.join(sorted(unread))}). Convert them to JPEG or PNG."
        )
    train = set(examples.files)
    groups = copies([*examples.files, *validation.files])
    if not groups:
        return notes
    label_of = dict(
        zip(
            [*examples.files, *validation.files],
            [*examples.labels, *validation.labels],
            strict=True,
        )
    )
    leaks = [g for g in groups if 0 < sum(f in train for f in g) < len(g)]
    doubtful = [g for g in groups if len({label_of[f] for f in g}) > 1]
    if leaks:
        notes.append(
            f"Images for both training and validation: {len(leaks)}. They make "
            f"the accuracy too high. Remove one of each: {few(leaks)}"
        )
    if doubtful:
        notes.append(
            f"Images in two classes: {len(doubtful)}. Remove the wrong ones: "
            f"{few(doubtful)}"
        )
    if not leaks and not doubtful:
        count = sum(len(group) - 1 for group in groups)
        notes.append(
            f"Copies of other images: {count}, each on the same side of the "
            f"split as the other: {few(groups)}"
        )
    return notes


def unread_suffixes(*splits: Examples) -> Counter[str]:
    """Counts image files that only other programs read, by suffix."""
    unread = {*IMAGE_SUFFIXES, ".heic", ".heif"} - {*GRAPH_SUFFIXES}
    folders = {
        part.files.folder / name
        for part in splits
        for name in part.class_names
        if part.files
    }
    return Counter(
        file.suffix.lower()
        for folder in folders
        for file in folder.rglob("[!.]*")
        if file.suffix.lower() in unread
    )


def few(groups: Sequence[Sequence[Path]]) -> str:
    """The first three of some groups of files, as text."""
    shown = [" and ".join(map(str, group[:2])) for group in groups[:3]]
    return "; ".join(shown) + "; ..." * (len(groups) > 3)
