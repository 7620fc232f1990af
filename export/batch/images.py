"""Images from files, Parquet, TFRecord and datasets, in parts of a fixed order.

A *part* is read by one task, and its predictions are one file. The parts of
the same input are always the same: that is what a resumed job relies on.
"""

import hashlib
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from export.batch.locations import (
    file_stamp,
    find_files,
    is_remote,
    open_file,
)
from keras_cait.command_line import one_line
from keras_cait.datasets import Dataset, open_dataset
from keras_cait.files import IMAGE_SUFFIXES
from keras_cait.records import AFTER, BEFORE, LENGTH

TFRECORD = re.compile(r"\.tfrecords?(-\d+-of-\d+)?$")
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


def parts_of_input(
    inputs: Iterable[str],
    part_size: int,
    column: str | None,
    folder: str,
    output: str | None = None,
) -> list[Part]:
    """The parts of files: images, Parquet or TFRecord, all of one kind.

    Args:
        inputs: paths, URIs, folders and globs. Each file is read once.
        part_size: images per part. A row group of Parquet and a shard of
            TFRecord are never divided.
        column: Parquet column of the images; `None` finds it.
        folder: the current folder, in which relative paths start.
        output: the folder of predictions, which are no input when a job is
            resumed.

    Raises:
        ValueError: there are no such files, they are of several kinds, or a
            Parquet file has no such column.

    Example:
    >>> parts_of_input(["nowhere.jpg"], 1024, None, "")
    Traceback (most recent call last):
    ValueError: There is no file or folder 'nowhere.jpg'.
    """
    found = (
        file
        for one in inputs
        for file in find_files(
            one, lambda name: kind_of(name) is not None, output
        )
    )
    files = list(dict.fromkeys(found))  # inputs may overlap
    kinds = {kind_of(file) or "image" for file in files}
    if len(kinds) > 1:
        raise ValueError(
            f"The input has files of several kinds: {', '.join(sorted(kinds))}."
            " Give one of them, such as --input 'data/*.parquet'."
        )
    (kind,) = kinds
    if column and kind != "Parquet":
        raise ValueError("--column needs an --input of Parquet files.")
    if kind == "image":
        return _parts_of_files(files, part_size, folder)
    stamps = ahead(lambda file: file_stamp(file, folder), files)
    stamped = zip(files, stamps, strict=True)
    if kind == "TFRecord":
        return [Records(file, folder, stamp) for file, stamp in stamped]
    return [
        part
        for file, stamp in stamped
        for part in _parts_of_parquet(file, part_size, column, folder, stamp)
    ]


def kind_of(file: str) -> str | None:
    """The kind of a file, by its name.

    Example:
    >>> kind_of("a.JPG"), kind_of("a.tfrecord-00000-of-00008"), kind_of("a.md")
    ('image', 'TFRecord', None)
    """
    file = file.lower()
    if file.endswith(IMAGE_SUFFIXES):
        return "image"
    if file.endswith(".parquet"):
        return "Parquet"
    return "TFRecord" if TFRECORD.search(file) else None


def parts_of_dataset(
    data: str,
    split: str,
    data_dir: str | Path | None,
    part_size: int,
    **part: Any,
) -> tuple[list[Part], int]:
    """The parts of a labeled dataset, and its number of classes.

    Args:
        data, split, data_dir: as of `keras_cait.datasets.open_dataset`.
        part_size: images per part.
        **part: `validation_fraction` and `fold`, as of `open_dataset`.

    Raises:
        ValueError: as of `open_dataset`.

    Example:
    >>> parts, classes = parts_of_dataset("digits", "validation", None, 256)
    >>> len(parts), classes
    (4, 10)
    """
    dataset = open_dataset(data, split, data_dir, **part)
    starts = range(0, len(dataset), part_size)
    parts: list[Part]
    if dataset.files:
        paths = [str(file.absolute()) for file in dataset.files]
        parts = [
            Files(
                tuple(paths[start : start + part_size]),
                "",
                dataset.labels[start : start + part_size],
            )
            for start in starts
        ]
    else:
        parts = [
            Examples(
                *(data, split, data_dir),
                start,
                min(start + part_size, len(dataset)),
            )
            for start in starts
        ]
    return parts, len(dataset.class_names)


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


def _content(path: str, folder: str) -> bytes | OSError:
    try:
        with open_file(path, folder, in_order=True) as file:
            return file.read()
    except OSError as error:
        return error


def _parts_of_files(
    files: Sequence[str], part_size: int, folder: str
) -> list[Part]:
    return [
        Files(tuple(files[start : start + part_size]), folder)
        for start in range(0, len(files), part_size)
    ]


@dataclass(frozen=True)
class Rows:
    """Row groups of a Parquet file with encoded images.

    Attributes:
        file: path or URI.
        folder: where relative paths start.
        stamp: as of `export.batch.locations.file_stamp`.
        groups: numbers of the row groups.
        first: number of their first row in the file.
        count: number of their rows.
        column: name of the column of the images.
        name_column: that of their ids; without it, they are `FILE#ROW`.
    """

    file: str
    folder: str
    stamp: str
    groups: tuple[int, ...]
    first: int
    count: int
    column: str
    name_column: str | None

    def read(self) -> Iterator[Image]:
        columns = [self.column]
        if self.name_column:
            columns.append(self.name_column)
        row = self.first
        with open_file(self.file, self.folder) as source:
            batches = parquet.ParquetFile(source).iter_batches(
                batch_size=64, row_groups=self.groups, columns=columns
            )
            for batch in batches:
                images = batch.column(self.column)
                if pa.types.is_struct(images.type):
                    images = images.field("bytes")
                names = [f"{self.file}#{row + i}" for i in range(len(batch))]
                if self.name_column:
                    own = batch.column(self.name_column).to_pylist()
                    names = [
                        name if mine is None else str(mine)
                        for name, mine in zip(names, own, strict=True)
                    ]
                row += len(batch)
                for name, image in zip(names, images, strict=True):
                    content = image.as_py()
                    if content is None:
                        content = ValueError("The row has no image.")
                    yield Image(name, content)


def _parts_of_parquet(
    file: str, part_size: int, column: str | None, folder: str, stamp: str
) -> list[Part]:
    try:
        opened = parquet.ParquetFile(open_file(file, folder))
    except pa.ArrowException as error:
        raise ValueError(
            f"{file!r} is not a Parquet file, or is damaged: {one_line(error)}"
        ) from None
    with opened:
        schema = opened.schema_arrow
        column = column or _image_column(file, schema)
        if column not in schema.names:
            raise ValueError(
                f"{file!r} has no column {column!r}, but "
                f"{', '.join(schema.names)}."
            )
        if schema.names.count(column) > 1:
            raise ValueError(
                f"{file!r} has several columns {column!r}. Rename all but one."
            )
        if _is_text(schema.field(column).type):
            paths = opened.read([column]).column(column).to_pylist()
            if None in paths:
                raise ValueError(
                    f"Row {paths.index(None)} of {file!r} has no path in the "
                    f"column {column!r}."
                )
            return _parts_of_files(paths, part_size, folder)
        if not _holds_images(schema.field(column)):
            raise ValueError(
                f"The column {column!r} of {file!r} is of the type "
                f"{schema.field(column).type}. Expected encoded images "
                "(binary, or a struct with binary bytes) or paths (string)."
            )
        sizes = [
            opened.metadata.row_group(group).num_rows
            for group in range(opened.num_row_groups)
        ]
    name = _name_column(schema, column)
    parts: list[Part] = []
    first = rows = 0
    groups: list[int] = []
    for group, size in enumerate(sizes):
        groups.append(group)
        rows += size
        is_last = group == len(sizes) - 1
        if rows >= part_size or (rows and is_last):
            parts.append(
                Rows(
                    *(file, folder, stamp),
                    *(tuple(groups), first, rows, column, name),
                )
            )
            first, rows, groups = first + rows, 0, []
    return parts


def _image_column(file: str, schema: pa.Schema) -> str:
    """The only column that can hold images, or that of paths."""
    found = [field.name for field in schema if _holds_images(field)]
    if not found and "path" in schema.names:
        return "path"
    if len(found) != 1:
        raise ValueError(
            f"{file!r} has {len(found)} columns of encoded images (binary) and "
            f"the columns {', '.join(schema.names)}. Name the one to read: "
            "--column NAME."
        )
    return found[0]


def _name_column(schema: pa.Schema, column: str) -> str | None:
    """The column of ids beside that of images."""
    for name in ("id", "path"):
        if name != column and schema.names.count(name) == 1:
            kind = schema.field(name).type
            if _is_text(kind) or pa.types.is_integer(kind):
                return name
    return None


def _holds_images(field: pa.Field) -> bool:
    kind = field.type
    if pa.types.is_struct(kind):  # as Hugging Face datasets have it
        index = kind.get_field_index("bytes")
        return index >= 0 and _is_binary(kind.field(index).type)
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    kind = _without_dictionary(kind)
    return kind in (pa.binary(), pa.large_binary(), pa.binary_view())


def _is_text(kind: pa.DataType) -> bool:
    kind = _without_dictionary(kind)
    return kind in (pa.string(), pa.large_string(), pa.string_view())


def _without_dictionary(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if isinstance(kind, pa.DictionaryType) else kind


@dataclass(frozen=True)
class Records:
    """A TFRecord shard of `tf.Example`s with `image/encoded`.

    An id is `image/filename` where there is one, otherwise `FILE#RECORD`.

    Attributes:
        file: path or URI.
        folder: where relative paths start.
        stamp: as of `export.batch.locations.file_stamp`.
    """

    file: str
    folder: str
    stamp: str
    count: None = None

    def read(self) -> Iterator[Image]:
        from tensorflow.core.example.example_pb2 import Example

        with open_file(self.file, self.folder, in_order=True) as file:
            stream = pa.BufferedInputStream(file, 1 << 20)
            for index, record in enumerate(_records(stream)):
                name = f"{self.file}#{index}"
                if isinstance(record, Exception):
                    yield Image(name, record)
                    return
                try:
                    features = Example.FromString(record).features.feature
                except Exception as error:  # protobuf's own
                    yield Image(name, ValueError(one_line(error)))
                    continue
                names = features["image/filename"].bytes_list.value
                images = features["image/encoded"].bytes_list.value
                yield Image(
                    names[0].decode(errors="replace") if names else name,
                    images[0]
                    if images
                    else ValueError("The record has no image/encoded."),
                )


def _records(stream: Any) -> Iterator[bytes | Exception]:
    """The records of a TFRecord file; of a cut one an error at the end."""
    while header := stream.read(BEFORE):
        size = LENGTH.unpack_from(header)[0] if len(header) == BEFORE else 0
        if not 0 < size < 1 << 31:
            yield ValueError("The file is no TFRecord file, or is cut.")
            return
        record = stream.read(size + AFTER)
        if len(record) < size + AFTER:
            yield ValueError("The file is cut within this record.")
            return
        yield record[:size]


@dataclass(frozen=True)
class Examples:
    """A range of a dataset that is read by number.

    Attributes:
        data, split, data_dir: as of `keras_cait.datasets.open_dataset`.
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
            image, label = dataset[index]
            known = isinstance(label, int | np.integer)
            yield Image(
                dataset.name(index),
                image,
                int(label) if known else None,
            )


@cache  # once per process
def _opened(data: str, split: str, data_dir: str | Path | None) -> Dataset:
    return open_dataset(data, split, data_dir)
