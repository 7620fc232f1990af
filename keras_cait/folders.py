"""The images in the folders of classes, listed once and kept in an index.

Listing a million files takes a minute or more. The index of a folder is the
hidden file `.keras-cait-index` in it, or, where it cannot be written, a file in
`~/.cache/keras-cait`. It is used while no folder has changed since.
"""

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from keras_cait.files import GRAPH_SUFFIXES
from keras_cait.indexes import read_index, write_index

INDEX = ".keras-cait-index"
# Fewer images are listed faster than anyone notices.
MIN_INDEXED = 10_000
# A folder that changes again within the resolution of its time stamp would be
# taken for unchanged: 2 s on FAT and NFS.
SETTLED_NS = 2_000_000_000


class ImagePaths(Sequence[Path]):
    """Paths of images in a folder: as one text, a tenth of a list's memory.

    Args:
        folder: the folder.
        text: names relative to it, each followed by a zero byte.

    Example:
    >>> paths = ImagePaths(Path("photos"), b"cat/1.jpg\\0dog/1.jpg\\0")
    >>> len(paths), paths[1], list(paths.select([1]))
    (2, PosixPath('photos/dog/1.jpg'), [PosixPath('photos/dog/1.jpg')])
    """

    def __init__(self, folder: Path = Path(), text: bytes = b"") -> None:
        self.folder = folder
        self.text = text
        ends = np.flatnonzero(np.frombuffer(text, np.uint8) == 0)
        self.starts = np.concatenate([[0], ends[:-1] + 1])[: len(ends)]
        self.lengths = ends - self.starts

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Path:  # type: ignore[override]
        return self.folder / os.fsdecode(self.name(index))

    def name(self, index: int) -> bytes:
        """The name relative to the folder."""
        start = self.starts[index]
        return self.text[start : start + self.lengths[index]]

    def select(self, indices: Iterable[int]) -> "ImagePaths":
        """Some of the paths, in the given order."""
        names = self.text.split(b"\0")
        text = b"".join(names[index] + b"\0" for index in indices)
        return ImagePaths(self.folder, text)


def list_images(
    root: Path, class_names: Sequence[str]
) -> tuple[ImagePaths, tuple[int, ...]]:
    """Lists the images of all classes, or reads their index.

    Args:
        root: folder of the classes.
        class_names: names of its subfolders, which may be missing. Hidden
            files and folders in them are left out.

    Returns:
        The images, class by class and sorted within each, and their labels.

    Example:
    >>> Path("photos/cat").mkdir(parents=True)
    >>> Path("photos/cat/1.jpg").touch()
    >>> paths, labels = list_images(Path("photos"), ["ant", "cat"])
    >>> list(paths), labels
    ([PosixPath('photos/cat/1.jpg')], (1,))
    """

    def is_current(head: dict[str, Any]) -> bool:
        changed = head["changed"]
        return (
            head["classes"] == [*class_names]
            and head["suffixes"] == [*GRAPH_SUFFIXES]
            and all(
                _last_change(root / folder) == changed.get(folder)
                for folder in {*class_names, *changed}
            )
        )

    if found := read_index(root / INDEX, is_current):
        head, text = found
        return ImagePaths(root, text), _labels(head["counts"])
    changed: dict[str, int] = {}
    counts = []
    lines = bytearray()
    for name in class_names:
        images = sorted(
            _images(root, name, changed),
            key=lambda image: os.path.normcase(image).split(os.sep),
        )
        counts.append(len(images))
        lines += b"".join(os.fsencode(image) + b"\0" for image in images)
    is_settled = time.time_ns() - max(changed.values(), default=0) > SETTLED_NS
    if sum(counts) >= MIN_INDEXED and is_settled:
        head = {
            "classes": [*class_names],
            "suffixes": GRAPH_SUFFIXES,
            "counts": counts,
            "changed": changed,
        }
        write_index(root / INDEX, head, bytes(lines))
    return ImagePaths(root, bytes(lines)), _labels(counts)


def _last_change(folder: Path) -> int | None:
    """When a folder was last changed; `None` if there is none."""
    with suppress(OSError):
        return os.stat(folder).st_mtime_ns
    return None


def _labels(counts: Sequence[int]) -> tuple[int, ...]:
    return tuple(
        label for label, count in enumerate(counts) for _ in range(count)
    )


def _images(root: Path, folder: str, changed: dict[str, int]) -> Iterator[str]:
    """The images in a folder, which may be missing, and in its subfolders.

    Notes when each folder was last changed. As `Path.rglob`, it does not follow
    links to subfolders and passes over those that may not be read.
    """
    with suppress(OSError):
        # Before its files: a change in between is noticed.
        changed[folder] = os.stat(root / folder).st_mtime_ns
        with os.scandir(root / folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                name = f"{folder}/{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    yield from _images(root, name, changed)
                elif _is_image(entry):
                    yield name


def _is_image(entry: os.DirEntry[str]) -> bool:
    """As `keras_cait.files.is_image_file`, without a call per file."""
    suffix = os.path.splitext(entry.name)[1].lower()
    return suffix in GRAPH_SUFFIXES and (
        entry.is_file() or not os.path.exists(entry.path)
    )
