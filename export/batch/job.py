"""The folder of a job's predictions: one file per part, written atomically.

`_job.json` says what the job is, so that another one cannot continue it. Its
name is hidden from readers of Parquet folders, as `_SUCCESS` is.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyarrow import parquet
from pyarrow.fs import FileSelector, FileSystem, FileType

from export.batch.locations import is_remote, open_location
from export.options import PredictionFormat
from keras_cait.files import differences, folder_path, locked

MANIFEST = "_job.json"


@dataclass(frozen=True)
class Job:
    """An output folder, which only one process writes.

    Attributes:
        system, folder: the file system, and the path of the folder there.
        format: that of the files.
        finished: numbers of the parts that are there.
    """

    system: FileSystem
    folder: str
    format: PredictionFormat
    finished: frozenset[int]

    def write(self, part: int, rows: pa.Table) -> None:
        """Writes the predictions of a part."""
        content = pa.BufferOutputStream()
        if self.format == "parquet":
            parquet.write_table(rows, content)
        else:
            for row in rows.to_pylist():
                text = json.dumps(row, ensure_ascii=False)
                content.write(f"{text}\n".encode(errors="surrogatepass"))
        _write(
            self.system,
            self.folder,
            file_name(part, self.format),
            content.getvalue(),
        )


def file_name(part: int, format: PredictionFormat) -> str:
    """The name of a part's file.

    Example:
    >>> file_name(7, "parquet")
    'part-00007.parquet'
    """
    return f"part-{part:05d}.{format}"


@contextmanager
def open_job(
    output: str,
    settings: Mapping[str, Any],
    format: PredictionFormat,
    resume: bool,
) -> Iterator[Job]:
    """Starts a job in a new folder, or continues it.

    Args:
        output: path or URI of the folder.
        settings: what the predictions depend on, which JSON can hold.
        format: that of the files.
        resume: whether the folder may hold predictions of the same job.

    Raises:
        ValueError: the folder exists and `resume` is not set, belongs to
            another job, or another process is writing it.
        OSError: the folder cannot be written.

    Example:
    >>> with open_job("predictions", {"model": "S24"}, "jsonl", False) as job:
    ...     job.write(0, pa.table({"image": ["cat.jpg"]}))
    >>> with open_job("predictions", {"model": "S24"}, "jsonl", True) as job:
    ...     sorted(job.finished)
    [0]
    """
    if not is_remote(output):
        folder_path(output)
    with nullcontext() if is_remote(output) else locked(output):
        system, folder = open_location(output)
        exists = system.get_file_info(folder).type != FileType.NotFound
        names = _names(system, folder) if exists else []
        # A job that failed at once has left its manifest alone.
        if exists and not resume and names != [MANIFEST]:
            raise ValueError(
                f"{output!r} already exists. Add --resume to continue its "
                "job, choose another --output, or delete it."
            )
        if names:
            _check_settings(_manifest(system, folder, output), settings, output)
        else:  # new, or the first process was killed at once
            text = json.dumps(settings, indent=2, ensure_ascii=False)
            content = f"{text}\n".encode(errors="surrogatepass")
            system.create_dir(folder, recursive=True)
            _write(system, folder, MANIFEST, content)
        part = re.compile(rf"part-(\d+)\.{format}")
        found = filter(None, map(part.fullmatch, names))
        finished = frozenset(int(name[1]) for name in found)
        yield Job(system, folder, format, finished)


def _write(
    system: FileSystem, folder: str, name: str, content: bytes | pa.Buffer
) -> None:
    """Writes a file atomically."""
    unfinished = f"{folder}/.{name}"
    try:
        with system.open_output_stream(unfinished, compression=None) as file:
            file.write(content)
        system.move(unfinished, f"{folder}/{name}")
    except BaseException:
        with suppress(OSError):
            system.delete_file(unfinished)
        raise


def _manifest(system: FileSystem, folder: str, output: str) -> dict[str, Any]:
    try:
        with system.open_input_stream(f"{folder}/{MANIFEST}") as file:
            found = json.loads(file.read())
    except FileNotFoundError:
        raise ValueError(
            f"{output!r} holds no predictions: it has no {MANIFEST}. Choose "
            "another --output."
        ) from None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ValueError(
            f"{MANIFEST} in {output!r} is damaged. Choose another --output."
        )
    return found


def _check_settings(
    theirs: Mapping[str, Any], ours: Mapping[str, Any], output: str
) -> None:
    differing = differences(theirs, ours, ours)
    if differing:
        raise ValueError(
            f"{output!r} belongs to another job: {', '.join(differing)}. "
            "Choose another --output, or repeat the command of that job."
        )


def _names(system: FileSystem, folder: str) -> list[str]:
    """What is in a folder, without unfinished files."""
    found = system.get_file_info(FileSelector(folder))
    return [i.base_name for i in found if not i.base_name.startswith(".")]
