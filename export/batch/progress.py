"""The progress line of a job."""

import sys
import time
from collections.abc import Iterable, Iterator

import pyarrow as pa

# Seconds between two lines, on a terminal and in a log.
REDRAW, LOG = 0.5, 30.0


class Progress:
    """Counts rows, and shows the line on stderr inside a `with` block.

    Args:
        total: number of images; `None` if it is not known.
        done: how many of them an interrupted job has done.

    Attributes:
        images: rows so far, without those of the interrupted job.
        errors: how many of them have an error.
    """

    def __init__(self, total: int | None, done: int = 0):
        self.total = total
        self.done = done
        self.images = self.errors = 0
        self.start: tuple[float, int] | None = None
        self.shown = 0.0

    def __enter__(self) -> "Progress":
        self.show()
        return self

    def __exit__(self, *_: object) -> None:
        self.show()
        if sys.stderr.isatty():
            print(file=sys.stderr)

    def watch(self, blocks: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Counts the rows that pass."""
        for block in blocks:
            self.images += len(block)
            self.errors += len(block) - block["error"].null_count
            # Not from the start, when workers load the model.
            self.start = self.start or (time.monotonic(), self.images)
            pause = REDRAW if sys.stderr.isatty() else LOG
            if time.monotonic() - self.shown > pause:
                self.show()
            yield block

    def speed(self) -> float:
        """Images per second, after the first ones; 0 if it is too early."""
        if self.start is None:
            return 0.0
        since, first = self.start
        seconds = time.monotonic() - since
        return (self.images - first) / seconds if seconds > 1 else 0.0

    def show(self) -> None:
        """Prints the line."""
        self.shown = time.monotonic()
        if sys.stderr.isatty():
            print(f"\r{self.line():<79}", end="", file=sys.stderr, flush=True)
        else:
            print(self.line(), file=sys.stderr, flush=True)

    def line(self) -> str:
        """The line.

        Example:
        >>> Progress(1000).line()
        '0 of 1,000 images'
        """
        done = self.done + self.images
        words = [f"{done:,} images"]
        if self.total is not None:
            words = [f"{done:,} of {self.total:,} images"]
        speed = self.speed()
        if speed:
            words.append(f"{speed:,.0f} images/s")
        if speed and self.total:
            words.append(f"{duration((self.total - done) / speed)} left")
        if self.errors:
            words.append(f"{self.errors:,} with an error")
        return ", ".join(words)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds.

    Example:
    >>> duration(75), duration(3725)
    ('1:15', '1:02:05')
    """
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02d}:{seconds:02d}"
    return f"{minutes}:{seconds:02d}"
