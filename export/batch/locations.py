"""Files by path or URI: local, gs:// and s3://, through PyArrow."""

import glob
import os
import posixpath
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pyarrow as pa
from fsspec.implementations.arrow import ArrowFSWrapper
from pyarrow.fs import FileSystem, LocalFileSystem

from keras_cait.files import is_visible


def is_remote(location: str) -> bool:
    """Whether a location is a URI.

    Example:
    >>> is_remote("gs://bucket/photos"), is_remote("photos")
    (True, False)
    """
    return "://" in location


def open_location(location: str, folder: str = "") -> tuple[FileSystem, str]:
    """The file system of a location, and its path there.

    Args:
        location: path or URI.
        folder: that of relative paths; by default the current one.

    Raises:
        ValueError: the kind of file system is not known.
        OSError: it cannot be reached.

    Example:
    >>> open_location("file:///photos/cat.jpg")[1]
    '/photos/cat.jpg'
    """
    if not is_remote(location):
        return LocalFileSystem(), os.path.abspath(
            os.path.join(folder, location)
        )
    scheme, path = location.split("://", 1)
    return _file_system(scheme, path.partition("/")[0]), path


@cache  # opening a bucket asks where it is
def _file_system(scheme: str, bucket: str) -> FileSystem:
    try:
        found, _ = FileSystem.from_uri(f"{scheme}://{bucket or '/'}")
    except (pa.ArrowException, TypeError) as error:
        raise ValueError(
            f"{scheme}://{bucket} is not a file system that PyArrow knows. "
            f"Give a path, gs:// or s3://. ({error})"
        ) from None
    return found


def open_file(
    location: str, folder: str = "", in_order: bool = False
) -> pa.NativeFile:
    """Opens a file to read.

    Args:
        location, folder: as in `open_location`.
        in_order: whether it is only read from start to end, which remote files
            do at less cost.

    Example:
    >>> _ = Path("cat.jpg").write_bytes(b"cat")
    >>> open_file("cat.jpg").read()
    b'cat'
    """
    system, path = open_location(location, folder)
    if isinstance(system, LocalFileSystem):
        return pa.OSFile(os.fsencode(path))  # a name can be any bytes
    if in_order:
        return system.open_input_stream(path, compression=None)
    return system.open_input_file(path)


def file_stamp(location: str, folder: str = "") -> str:
    """Size and modification time of a file, which another content changes.

    Args:
        location, folder: as in `open_location`.

    Example:
    >>> _ = Path("cat.jpg").write_bytes(b"cat")
    >>> file_stamp("cat.jpg").partition(",")[0]
    '3 bytes'
    """
    system, path = open_location(location, folder)
    if isinstance(system, LocalFileSystem):
        found = os.stat(path)
        return f"{found.st_size} bytes, {found.st_mtime_ns} ns"
    about = system.get_file_info(path)
    return f"{about.size} bytes, {about.mtime_ns} ns"


def find_files(
    location: str, belongs: Callable[[str], bool], output: str | None = None
) -> list[str]:
    """The files that a path, URI, folder or glob stands for, sorted.

    Args:
        location: a file or glob, whose files are taken as they are; or a
            folder, which is searched with its subfolders, without hidden ones.
        belongs: whether a file of a folder is taken, by its name.
        output: a folder whose files are left out.

    Raises:
        ValueError: a path is empty, there is no such file or folder, or no
            file matches.

    Example:
    >>> Path("photos").mkdir()
    >>> Path("photos/cat.jpg").touch()
    >>> find_files("photos", lambda name: name.endswith(".jpg"))
    ['photos/cat.jpg']
    """
    if "" in (location, output):
        raise ValueError("An input or the output is empty. Give a path or URI.")
    found = (_remote if is_remote(location) else _local)(location, belongs)
    if output is not None:
        inside = f"{open_location(output)[1].rstrip('/')}/"
        found = [
            file
            for file in found
            if not open_location(file)[1].startswith(inside)
        ]
    if not found:
        brackets = " Brackets are patterns: write [[] for [."
        raise ValueError(
            f"No images, Parquet or TFRecord files in {location!r}."
            + brackets * ("[" in location)
        )
    return sorted(found)


def _local(path: str, belongs: Callable[[str], bool]) -> list[str]:
    if os.path.isfile(path):
        return [path]
    if os.path.isdir(path):
        return [
            str(file)
            for file in Path(path).rglob("*")
            if belongs(file.name)
            and is_visible(str(file.relative_to(path)))
            and (file.is_file() or not file.exists())  # a broken link
        ]
    if os.path.exists(path):  # a pipe would wait for ever
        raise ValueError(f"{path!r} is neither a file nor a folder.")
    if not glob.has_magic(path):
        raise ValueError(f"There is no file or folder {path!r}.")
    found = glob.iglob(path, recursive=True)
    return [file for file in found if os.path.isfile(file)]


def _remote(uri: str, belongs: Callable[[str], bool]) -> list[str]:
    system, path = open_location(uri)
    files = ArrowFSWrapper(system)
    if glob.has_magic(path):
        found = [
            file
            for file, about in files.glob(path, detail=True).items()
            if about["type"] == "file"
        ]
    elif files.isfile(path):
        found = [path]
    elif files.exists(path):
        found = [
            file
            for file in files.find(path)
            if belongs(posixpath.basename(file))
            and is_visible(file.removeprefix(path))
        ]
    else:
        raise ValueError(f"There is no file or folder {uri!r}.")
    return [f"{uri.partition('://')[0]}://{file}" for file in found]
