"""Parts of the images to classify: of files, and of a dataset.

A *part* is read by one task, and its predictions are one file. The parts of
the same input are always the same: that is what a resumed job relies on.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from export.batch.locations import is_remote, open_file
from keras_cait.datasets import Dataset, open_dataset

# Reads in flight for one part: a remote file takes as long as many local ones.
REMOTE_READS = 32


class Image(NamedTuple):
    """An image to classify.

    Attributes:
        name: its path or id.
        content: the encoded file, a uint8 array `(height, width, 3)`, or why
            it cannot be read.
        label: the number of its class, if it is known.
    """

    name: str
    content: bytes | np.ndarray | Exception
    label: int | None = None


class Part(Protocol):
    """Some images, which are read on the machine that decodes them."""

    @property
    def count(self) -> int | None:
        """Number of images; `None` where only reading tells (TFRecord)."""
        ...

    def read(self) -> Iterator[Image]:
        """The images, in order."""
        ...


@dataclass(frozen=True)
class Files:
    """Image files.

    Attributes:
        paths: paths or URIs.
        folder: where relative paths start.
        labels: numbers of the classes, if they are known.
    """

    paths: tuple[str, ...]
    folder: str
    labels: tuple[int, ...] = ()

    @property
    def count(self) -> int:
        return len(self.paths)

    def read(self) -> Iterator[Image]:
        def read(index: int) -> Image:
            path = self.paths[index]
            label = self.labels[index] if self.labels else None
            return Image(path, _content(path, self.folder), label)

        indices = range(len(self.paths))
        if any(map(is_remote, self.paths)):
            return ahead(read, indices)
        return map(read, indices)


def _content(path: str, folder: str) -> bytes | OSError:
    try:
        with open_file(path, folder, in_order=True) as file:
            return file.read()
    except OSError as error:
        return error


def parts_of_files(
    files: Sequence[str],
    part_size: int,
    folder: str,
    labels: tuple[int, ...] = (),
) -> list[Part]:
    parts = [
        slice(start, start + part_size)
        for start in range(0, len(files), part_size)
    ]
    return [Files(tuple(files[part]), folder, labels[part]) for part in parts]


@dataclass(frozen=True)
class Examples:
    """A range of a dataset that is read by number.

    Attributes:
        data, split, data_dir: as in `keras_cait.datasets.open_dataset`.
        start, stop: the range.
    """

    data: str
    split: str
    data_dir: str | Path | None
    start: int
    stop: int

    @property
    def count(self) -> int:
        return self.stop - self.start

    def read(self) -> Iterator[Image]:
        dataset = _opened(self.data, self.split, self.data_dir)
        for index in range(self.start, self.stop):
            name = dataset.name(index)
            try:
                image, label = dataset[index]
            except OSError as error:
                yield Image(name, error)
                continue
            known = isinstance(label, int | np.integer)
            yield Image(name, image, int(label) if known else None)


@cache  # once per process
def _opened(data: str, split: str, data_dir: str | Path | None) -> Dataset:
    return open_dataset(data, split, data_dir)


def ahead(function: Callable, items: Iterable) -> Iterator:
    """Maps in threads, in order, some results ahead of their use.

    Example:
    >>> list(ahead(abs, [-2, -1]))
    [2, 1]
    """
    with ThreadPoolExecutor(REMOTE_READS) as threads:
        pending: deque = deque()
        for item in items:
            pending.append(threads.submit(function, item))
            if len(pending) > REMOTE_READS:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def digest(items: Iterable[Any]) -> str:
    """SHA-256 of labels, or of what parts are made of.

    That is names of images, and stamps of files that hold several.

    Example:
    >>> digest([])[:8]
    'e3b0c442'
    """
    found = hashlib.sha256()
    for item in items:
        found.update(f"{item}\n".encode(errors="surrogateescape"))
    return found.hexdigest()


def count(parts: Iterable[Part]) -> int | None:
    """The number of images, if it is known.

    Example:
    >>> count([Files(("cat.jpg", "dog.jpg"), "")])
    2
    """
    sizes = [part.count for part in parts]
    return None if None in sizes else sum(filter(None, sizes))
