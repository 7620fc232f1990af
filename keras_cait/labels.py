"""Labels: the names of a model's classes, in it, beside it or in a file."""

import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from keras_cait.conversion import listed
from keras_cait.files import printable
from keras_cait.loading import existing, published, saved_model_folder
from keras_cait.preprocessing import imagenet_labels

MAX_BYTES = 16 << 20  # of the labels in a `.tflite` file, once inflated


def load_labels(
    source: str | Path, path: str | Path | None = None, classes: int = 1000
) -> list[str]:
    """The names of a model's classes, in order.

    Args:
        source: as in `load_classifier`.
        path: text file with one label per line; `None` takes the labels in or
            beside the model (`labels.txt`), otherwise ImageNet's.
        classes: number of classes of the model.

    Raises:
        ValueError: there are no labels for these classes, or two are equal.

    Example:
    >>> load_labels("S24")[1]
    'goldfish'
    """
    labels = read_labels(path) if path else find_labels(source)
    if labels is None and classes == 1000:
        labels = [label for _, label in imagenet_labels()]
    if labels is None:
        raise ValueError(
            f"{str(source)!r} has {classes} classes and no labels. Give a "
            "text file with one class name per line: --labels FILE."
        )
    if len(labels) != classes:
        raise ValueError(
            f"Got {len(labels)} labels for the {classes} classes of "
            f"{str(source)!r}. Give one label per class: --labels FILE."
        )
    return labels


def read_labels(path: str | Path) -> list[str]:
    """Reads a text file with one label per line, with or without a BOM.

    Raises:
        ValueError: the file is missing or not text, or a label is empty or
            given twice.

    Example:
    >>> _ = Path("labels.txt").write_text("cat\\ndog\\n")
    >>> read_labels("labels.txt")
    ['cat', 'dog']
    """
    if Path(path).exists() and not Path(path).is_file():
        raise ValueError(f"Cannot read labels {str(path)!r}: it is not a file.")
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ValueError(
            f"Cannot read labels {str(path)!r}: {reason}."
        ) from None
    return _checked(text.splitlines(), str(path))


def find_labels(source: str | Path) -> list[str] | None:
    """The labels in or beside a model; `None` where there are none.

    Example:
    >>> find_labels("S24") is None
    True
    """
    if published(source):
        return None
    path = existing(source)
    labels = embedded_labels(path) if path.suffix == ".tflite" else None
    if labels is not None:
        return labels
    folder = saved_model_folder(path)
    beside = (
        folder / "assets.extra" / "labels.txt"
        if folder
        else path.parent / "labels.txt"
    )
    return read_labels(beside) if beside.is_file() else None


def embedded_labels(path: str | Path) -> list[str] | None:
    """The labels inside a `.tflite` file; `None` where there are none.

    Raises:
        ValueError: they cannot be read, or are not one label per line.

    Example:
    >>> _ = Path("model.tflite").write_bytes(b"no archive")
    >>> embedded_labels("model.tflite") is None
    True
    """
    if not zipfile.is_zipfile(path):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            if "labels.txt" not in archive.namelist():
                return None
            with archive.open("labels.txt") as file:
                content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ValueError(f"they have more than {MAX_BYTES} bytes")
        text = content.decode("utf-8-sig")
    except Exception as error:  # an archive fails in many ways
        raise ValueError(
            f"Cannot read the labels in {str(path)!r}: {error}. Export the "
            "model again."
        ) from None
    return _checked(text.splitlines(), str(path))


def check_classes(
    classes: int,
    labels: Sequence[str] | None,
    class_names: Sequence[str],
    data: str,
) -> None:
    """Checks that a model has a dataset's classes, by number and order.

    Args:
        classes: number of the model's classes.
        labels: their names, if the model has any. They may be others than in
            the dataset, such as translated ones.
        class_names, data: the dataset's classes and its name.

    Raises:
        ValueError: the numbers differ, or the same names are in another order.

    Example:
    >>> check_classes(2, None, ["cat", "dog"], "folder:photos")
    """
    if classes != len(class_names):
        raise ValueError(
            f"The model has {classes} classes, but {data} has "
            f"{len(class_names)}. Choose a dataset with the classes "
            "that the model was trained on."
        )
    names = [*class_names]
    if labels and labels != names and sorted(labels) == sorted(names):
        raise ValueError(
            f"The model's labels are {listed(labels)}, but {data} has them in "
            f"another order: {listed(names)}. Rename the folders so that their "
            f"order is that of the labels, such as '0 {labels[0]}'."
        )


def _checked(labels: list[str], path: str) -> list[str]:
    if not labels or not all(labels):
        raise ValueError(
            f"{path!r} must hold one label per line and no empty lines. It "
            f"has {len(labels)} lines, {labels.count('')} of them empty."
        )
    for label in labels:
        if printable(label) != label:
            raise ValueError(
                f"{path!r} has control characters in the label {label!r}. "
                "Save it as UTF-8 text without them."
            )
    (label, count), *_ = Counter(labels).most_common(1)
    if count > 1:
        raise ValueError(
            f"Every class needs its own label. {path!r} has {label!r} {count} "
            "times."
        )
    return labels
