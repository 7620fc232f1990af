"""Finding image files, and writing files whole or not at all."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import SoftFileLock, Timeout

# What TensorFlow decodes inside a graph: training, evaluation and serving.
GRAPH_SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp")
# What `load_image` reads.
IMAGE_SUFFIXES = (
    *GRAPH_SUFFIXES,
    *(".webp", ".tif", ".tiff", ".avif", ".jp2", ".pgm", ".ppm"),
)


def image_files(
    paths: Iterable[str | Path], suffixes: tuple[str, ...] = IMAGE_SUFFIXES
) -> list[Path]:
    """Lists files, and all image files inside folders.

    Args:
        paths: files, which are taken as they are, and folders, which are
            searched with their subfolders for files with one of the suffixes.
        suffixes: lowercase file suffixes with a dot.

    Returns:
        Paths in the given order, sorted within a folder.

    Raises:
        ValueError: a path does not exist, or there are no image files.

    Example:
    >>> Path("photos").mkdir()
    >>> Path("photos/cat.jpg").touch()
    >>> image_files(["photos"])
    [PosixPath('photos/cat.jpg')]
    """
    paths = [Path(path) for path in paths]
    files = []
    for path in paths:
        if path.is_dir():
            files += sorted(
                file
                for file in path.rglob("*")
                if file.suffix.lower() in suffixes and file.is_file()
            )
        elif path.exists():
            files.append(path)
        else:
            raise ValueError(f"There is no file or folder {str(path)!r}.")
    if not files:
        raise ValueError(
            f"No images in {', '.join(map(repr, map(str, paths)))}. Expected "
            f"files that end in {', '.join(suffixes)}."
        )
    return files


def new_path(path: str | Path) -> Path:
    """Checks that an output can be written, before work is spent on it.

    Args:
        path: a file or folder to write. Its parent folder is created.

    Returns:
        The path.

    Raises:
        ValueError: the path exists.
        OSError: the parent folder cannot be created or written.

    Example:
    >>> new_path("results/report.json")
    PosixPath('results/report.json')
    """
    path = Path(path)
    if os.path.lexists(path):
        raise ValueError(
            f"{str(path)!r} already exists. Choose another output, or delete "
            "it first."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"No permission to write {str(path)!r}.")
    return path


@contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Keeps a second process from writing to the same output.

    The lock is a hidden file beside the output that names its process. It is
    removed at the end; the lock of a process that has died is taken over.

    Args:
        path: the file or folder that the block writes. Its parent folder
            exists.

    Raises:
        ValueError: another process holds the lock.

    Example:
    >>> with locked("model.keras"):
    ...     pass
    """
    path = Path(path)
    lock = SoftFileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(
            f"Process {lock.pid} is writing {str(path)!r}. Wait for it, or "
            "choose another output."
        ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def new_output(path: str | Path) -> Iterator[Path]:
    """A new file or folder: by one process, whole or not at all.

    Args:
        path: as of `new_path`.

    Yields:
        As `atomically`.

    Raises:
        ValueError: the path exists, or another process is writing it.
        OSError: the parent folder cannot be created or written.

    Example:
    >>> with new_output("results/labels.txt") as unfinished:
    ...     unfinished.write_text("cat")
    3
    """
    path = new_path(path)
    with locked(path), atomically(path) as unfinished:
        yield unfinished


@contextmanager
def atomically(path: str | Path) -> Iterator[Path]:
    """Writes a file or folder whole or not at all.

    Args:
        path: where the file or folder appears once the block has succeeded.
            An existing file is replaced; an existing folder must be empty.

    Yields:
        A temporary path beside it, to which the block writes. When the block
        raises, whatever it has written is removed.

    Example:
    >>> with atomically("labels.txt") as unfinished:
    ...     unfinished.write_text("cat")
    3
    >>> Path("labels.txt").read_text()
    'cat'
    """
    path = Path(path)
    # The process id keeps two writers apart; the suffix is kept, as some
    # libraries choose the format by it.
    unfinished = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    _remove(unfinished)
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        _remove(unfinished)


def write_text(path: str | Path, text: str) -> None:
    """Writes or replaces a text file (UTF-8), whole or not at all.

    Example:
    >>> write_text("labels.txt", "cat")
    """
    with atomically(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


def sha256(path: str | Path) -> str:
    """SHA-256 of a file, or of a folder's files together with their names.

    Example:
    >>> write_text("labels.txt", "cat")
    >>> sha256("labels.txt")[:8]
    '77af778b'
    """
    path = Path(path)
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digests = {
        str(file.relative_to(path)): sha256(file)
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
