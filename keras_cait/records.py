"""Random access to the records of TFRecord files."""

import os
import struct
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from keras_cait.indexes import read_index, write_index

# A record is its length, a checksum of it, the data and a checksum of these.
LENGTH = struct.Struct("<Q")
BEFORE, AFTER = 12, 4


@dataclass(frozen=True)
class Records:
    """Where the records of some files are.

    Attributes:
        files: paths of the files.
        file_of, start_of: int64 arrays. The file of each record, as its place
            in `files`, and the byte at which it starts.
    """

    files: tuple[str, ...]
    file_of: np.ndarray
    start_of: np.ndarray

    def __len__(self) -> int:
        return len(self.start_of)

    def __getitem__(self, index: int) -> bytes:
        with open(self.files[self.file_of[index]], "rb") as file:
            file.seek(self.start_of[index])
            (length,) = LENGTH.unpack(file.read(BEFORE)[: LENGTH.size])
            return file.read(length)

    def select(self, indices: Iterable[int]) -> "Records":
        """Some of the records, in the given order."""
        chosen = np.fromiter(indices, np.int64)
        return replace(
            self, file_of=self.file_of[chosen], start_of=self.start_of[chosen]
        )


def find_records(files: Sequence[str | Path], index: Path) -> Records:
    """Finds the records of TFRecord files, or reads their index.

    Args:
        files: the files, which are not compressed.
        index: where the index is kept, as in `keras_cait.indexes`.

    Raises:
        ValueError: a file is damaged.
        OSError: a file cannot be read.
    """
    sizes = {os.fspath(file): os.stat(file) for file in files}
    paths = tuple(path for path, status in sizes.items() if status.st_size)
    head = {
        os.path.basename(path): [sizes[path].st_size, sizes[path].st_mtime_ns]
        for path in paths
    }
    if found := read_index(index, lambda kept: kept == head):
        starts = np.frombuffer(found[1], "<i8")
    else:
        # In threads, as it is the disk that takes the time.
        with ThreadPoolExecutor(32) as threads:
            found_starts = threads.map(_starts, paths)
            starts = np.concatenate([np.zeros(0, "<i8"), *found_starts])
        write_index(index, head, starts.tobytes())
    # Every file has a record that starts at 0.
    return Records(paths, np.cumsum(starts == 0) - 1, starts)


def _starts(path: str) -> np.ndarray:
    """Where each record of a file starts."""
    starts = []
    start, end = 0, os.path.getsize(path)
    with open(path, "rb", buffering=0) as file:
        while start < end:
            starts.append(start)
            file.seek(start)
            length = file.read(LENGTH.size)
            if len(length) == LENGTH.size:
                start += BEFORE + LENGTH.unpack(length)[0] + AFTER
            if len(length) < LENGTH.size or start > end:
                raise ValueError(
                    f"{path!r} is truncated, or not a TFRecord file. Prepare "
                    "the dataset again."
                )
    return np.array(starts, "<i8")
