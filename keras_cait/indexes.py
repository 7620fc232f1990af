"""Indexes of large datasets: made once, kept beside the data or in a cache."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from keras_cait.files import atomically


def read_index(
    path: Path, is_current: Callable[[dict[str, Any]], bool]
) -> tuple[dict[str, Any], bytes] | None:
    """Reads an index that is complete and up to date.

    Args:
        path: as in `write_index`.
        is_current: whether the data are still those that a head describes.

    Returns:
        Head and body, or `None`.

    Example:
    >>> write_index(Path("photos.index"), {"count": 1}, b"cat.jpg")
    >>> read_index(Path("photos.index"), lambda head: head["count"] == 1)[1]
    b'cat.jpg'
    >>> read_index(Path("photos.index"), lambda head: head["count"] == 2)
    """
    for place in _places(path):
        # What something else wrote, or was writing, counts as no index.
        with suppress(OSError, ValueError, KeyError, TypeError):
            with place.open("rb") as file:
                size, head = json.loads(file.readline())
                body = file.read() if is_current(head) else b""
            if len(body) == size:
                return head, body
    return None


def write_index(path: Path, head: dict[str, Any], body: bytes) -> None:
    """Writes an index atomically, or not at all where that is impossible.

    Args:
        path: where it is written; if it cannot be, in `~/.cache/keras-cait`.
        head: what it was made of, to be compared when it is read.
        body: its content.
    """
    for place in _places(path):
        with suppress(OSError), atomically(place) as unfinished:
            line = json.dumps([len(body), head]).encode()
            unfinished.write_bytes(line + b"\n" + body)
            return


def _places(path: Path) -> Iterator[Path]:
    yield path
    with suppress(RuntimeError):  # there is no home
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        name = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()
        yield Path(cache) / "keras-cait" / name[:16]
