"""Parts of Parquet files, which hold encoded images or paths."""

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
from pyarrow import parquet

from export.batch.locations import open_file
from export.batch.parts import Image, Part, parts_of_files
from keras_cait.command_line import one_line


@dataclass(frozen=True)
class Rows:
    """Row groups of a Parquet file with encoded images.

    Attributes:
        file: path or URI.
        folder: where relative paths start.
        stamp: as in `export.batch.locations.file_stamp`.
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


def parts_of_parquet(
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
            return parts_of_files(paths, part_size, folder)
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
