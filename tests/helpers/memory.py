"""Peak memory of a block of code. Linux only."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Peak:
    """Memory that was added at most, in megabytes."""

    megabytes: float = 0.0


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Measures the peak memory that a block adds.

    Example:
    >>> with peak_memory() as peak:
    ...     data = bytes(10_000_000)
    >>> peak.megabytes > 9
    True
    """

    def status(key: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        value = next(line for line in lines if line.startswith(key))
        return int(value.split()[1]) * 1024 / 1e6

    peak = Peak()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = status("VmRSS")
    try:
        yield peak
    finally:
        peak.megabytes = status("VmHWM") - before
