"""Tensors that stay in their memory-mapped file until they are read."""

import math
import mmap
import re
from pathlib import Path
from typing import NamedTuple

import ml_dtypes  # noqa: F401  (registers bfloat16 with NumPy)
import numpy as np
from numpy.lib.stride_tricks import as_strided


class FileTensor(NamedTuple):
    """A tensor in a memory-mapped file, read by `np.asarray`.

    `start` is its first byte in the file. `strides` count elements, as in
    PyTorch; `None` is row-major. The reader of the file checks the bounds.
    """

    mapping: mmap.mmap
    start: int
    shape: tuple[int, ...]
    dtype: str
    strides: tuple[int, ...] | None = None

    def __array__(
        self, dtype: np.dtype | None = None, copy: bool | None = None
    ) -> np.ndarray:
        count = math.prod(self.shape)
        # Drop the pages read so far: they would count as a second copy of the
        # model. For a small tensor the call takes longer than the read.
        if count > 10_000 and hasattr(mmap, "MADV_DONTNEED"):
            self.mapping.madvise(mmap.MADV_DONTNEED)
        if self.strides is None or count == 0:
            array = np.frombuffer(self.mapping, self.dtype, count, self.start)
            return array.reshape(self.shape)
        array = np.frombuffer(
            self.mapping,
            self.dtype,
            1 + last_element(self.shape, self.strides),
            self.start,
        )
        return as_strided(
            array,
            self.shape,
            [stride * array.itemsize for stride in self.strides],
            writeable=False,
        )


def last_element(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Returns how many elements the last one lies behind the first.

    Example:
    >>> last_element((2, 3), (3, 1))
    5
    """
    return sum(
        (size - 1) * stride for size, stride in zip(shape, strides, strict=True)
    )


def unwrapped(name: str) -> str:
    """The name of a tensor without the prefixes of PyTorch's wrappers.

    They are those of `DistributedDataParallel` and `torch.compile`.

    Example:
    >>> unwrapped("module._orig_mod.cls_token")
    'cls_token'
    """
    return re.sub(r"^((module|_orig_mod)\.)+", "", name)


def map_file(path: Path) -> mmap.mmap:
    """Maps a file into memory, read-only.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is empty.
    """
    if path.stat().st_size == 0:
        raise ValueError("The file is empty.")
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
