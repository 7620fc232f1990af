"""Finds image files, and writes files atomically."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import SoftFileLock, Timeout

# What TensorFlow decodes inside a graph: training, evaluation and serving.
GRAPH_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".gif", ".bmp")
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
            searched with their subfolders for files with one of the suffixes,
            without hidden ones.
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
                if is_visible(file.relative_to(path).as_posix())
                and is_image_file(file, suffixes)
            )
        elif path.is_file():
            files.append(path)
        elif path.exists():  # a pipe would wait for ever
            raise ValueError(f"{str(path)!r} is neither a file nor a folder.")
        else:
            raise ValueError(f"There is no file or folder {str(path)!r}.")
    if not files:
        raise ValueError(
            f"No images in {', '.join(map(repr, map(str, paths)))}. Expected "
            f"files that end in {', '.join(suffixes)}."
        )
    return files


def is_visible(path: str) -> bool:
    """Whether neither a file nor a folder of a path is hidden.

    Example:
    >>> is_visible("cats/1.jpg"), is_visible("cats/._1.jpg")
    (True, False)
    """
    return not any(part.startswith(".") for part in path.split("/"))


def file_name(text: str) -> str:
    """A text as the name of a file: letters, digits and underscores.

    Of a long text, such as two paths, the name has a hash and the end: file
    systems take 255 bytes, of which suffixes need some.

    Example:
    >>> file_name("runs/lr0.1")
    'runs_lr0_1'
    """
    name = "".join(c if c.isalnum() else "_" for c in text)
    if len(name.encode()) <= 200:
        return name
    digest = hashlib.sha256(os.fsencode(text)).hexdigest()
    return f"{digest[:16]}_{name[-40:]}"


def printable(text: str) -> str:
    """Text without characters that control a terminal or the direction.

    Example:
    >>> printable("cat\\x1b[2J")
    'cat?[2J'
    """
    return re.sub(
        r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", "?", text
    )


def is_image_file(path: Path, suffixes: tuple[str, ...]) -> bool:
    """Whether a path in a folder is an image, by its name.

    A broken link is one, too, and is reported when it is read. Folders, pipes
    and sockets are not.

    Example:
    >>> is_image_file(Path("Thumbs.db"), IMAGE_SUFFIXES)
    False
    """
    is_readable = path.is_file() or not path.exists()
    return path.suffix.lower() in suffixes and is_readable


def new_path(path: str | Path) -> Path:
    """Checks that an output can be written, before work is spent on it.

    Args:
        path: a file or folder to write.

    Returns:
        The path. Nothing is created.

    Raises:
        ValueError: the path exists, or is inside a file.
        OSError: there is no permission to write it.

    Example:
    >>> new_path("results/report.json")
    PosixPath('results/report.json')
    """
    path = Path(path)
    # For the system, there is no new/../old.txt before there is a folder new.
    if os.path.lexists(path) or os.path.exists(os.path.realpath(path)):
        raise ValueError(
            f"{str(path)!r} already exists. Choose another output, or delete "
            "it first."
        )
    return folder_path(path)


def folder_path(path: str | Path) -> Path:
    """Checks that files can be written to a folder, which may exist.

    Args:
        path: the folder.

    Returns:
        The path. Nothing is created.

    Raises:
        ValueError: the path, or a parent, is not a folder.
        OSError: there is no permission to write to it.

    Example:
    >>> folder_path("runs/digits")
    PosixPath('runs/digits')
    """
    path = Path(path)
    existing = path
    while not os.path.lexists(existing):
        existing = existing.parent
    if not existing.is_dir():
        raise ValueError(
            f"Cannot write {str(path)!r}: {str(existing)!r} is not a folder."
        )
    if not os.access(existing, os.W_OK):
        raise PermissionError(f"No permission to write {str(path)!r}.")
    return path


@contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Keeps a second process from writing to the same output.

    The lock is a hidden file beside the output that names its process. It is
    removed at the end, with folders that were created for it and are empty. The
    lock of a process that has died is taken over.

    Args:
        path: the file or folder that the block writes. Its parent folder is
            created.

    Raises:
        ValueError: another process holds the lock.
        OSError: the parent folder cannot be created or written.

    Example:
    >>> with locked("model.keras"):
    ...     pass
    """
    output = Path(path).resolve()
    created = [folder for folder in output.parents if not folder.exists()]
    output.parent.mkdir(parents=True, exist_ok=True)
    lock = SoftFileLock(output.with_name(f".{output.name}.lock"))
    try:
        # Of filelock before 4, the first attempt removes the lock of a dead
        # process, and the second, 0.05 s later, succeeds.
        lock.acquire(timeout=0.1)
    except Timeout:
        holder = f"Process {pid}" if (pid := lock.pid) else "Another process"
        raise ValueError(
            f"{holder} is writing {str(path)!r}. Wait for it, or choose "
            "another output. If it was on another machine or in another "
            f"container and has ended, delete {lock.lock_file!r}."
        ) from None
    try:
        yield
    finally:
        lock.release()
        with suppress(OSError):  # not empty
            for folder in created:
                folder.rmdir()


@contextmanager
def new_output(path: str | Path) -> Iterator[Path]:
    """A new file or folder, written atomically by one process.

    Args:
        path: as in `new_path`.

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
    new_path(path)
    # Again in the lock: its last holder may have written the output.
    with locked(path), atomically(new_path(path)) as unfinished:
        yield unfinished


@contextmanager
def atomically(path: str | Path) -> Iterator[Path]:
    """Writes a file or folder atomically.

    Args:
        path: where the file or folder appears once the block has succeeded.
            Its parent folder is created. An existing file is replaced, but for
            its permissions; an existing folder must be empty.

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
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove(unfinished)
    try:
        yield unfinished
        with suppress(OSError):  # it is new, or the disk has no permissions
            shutil.copymode(path, unfinished)
        unfinished.replace(path)
    finally:
        _remove(unfinished)


def write_text(path: str | Path, text: str) -> None:
    """Writes or replaces a text file (UTF-8) atomically.

    Of file names in another encoding, it has the escapes that are printed.

    Example:
    >>> write_text("labels.txt", "cat")
    """
    with atomically(path) as unfinished:
        unfinished.write_text(text, "utf-8", errors="backslashreplace")


def read_json(path: str | Path, keys: Iterable[str] = ()) -> dict[str, Any]:
    """Reads a JSON file that this project has written.

    Args:
        path: the file.
        keys: keys that it must have.

    Raises:
        ValueError: the file is not JSON, or something else wrote it.
        OSError: the file cannot be read.

    Example:
    >>> write_text("summary.json", '{"top1": 0.9}')
    >>> read_json("summary.json", ["top1"])
    {'top1': 0.9}
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} is not JSON: {error}.") from None
    if not isinstance(content, dict) or not {*keys} <= content.keys():
        raise ValueError(
            f"{str(path)!r} is a JSON file of something else, or of another "
            "version of this project. Expected an object with "
            f"{', '.join(keys) or 'named values'}."
        )
    return content


def differences(
    theirs: Mapping[str, Any], ours: Mapping[str, Any], names: Iterable[str]
) -> list[str]:
    """The settings in a file that differ from those of now.

    Args:
        theirs, ours: the settings by name; one that is missing is `None`.
        names: those to compare.

    Example:
    >>> differences({"depth": 1}, {"depth": 2}, ["depth"])
    ['depth 1 (now 2)']
    """
    return [
        f"{name} {theirs.get(name)!r} (now {ours.get(name)!r})"
        for name in names
        if theirs.get(name) != ours.get(name)
    ]


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
