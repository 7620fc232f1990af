"""The images of a job, in parts of a fixed order: from files or a dataset."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from export.batch.locations import file_stamp, find_files, open_location
from export.batch.parquet import parts_of_parquet
from export.batch.parts import Examples, Part, ahead, parts_of_files
from export.batch.tfrecord import Records
from keras_cait.datasets import open_dataset
from keras_cait.files import IMAGE_SUFFIXES

TFRECORD = re.compile(r"\.tfrecords?(-\d+-of-\d+)?$")


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
    found: dict[tuple[str, str], str] = {}
    for one in inputs:
        for file in find_files(one, lambda name: bool(kind_of(name)), output):
            system, path = open_location(file, folder)
            # Inputs may overlap, and spell a file in several ways.
            found.setdefault((system.type_name, path), file)
    files = list(found.values())
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
        return parts_of_files(files, part_size, folder)
    stamps = ahead(lambda file: file_stamp(file, folder), files)
    stamped = zip(files, stamps, strict=True)
    if kind == "TFRecord":
        # An empty shard, which TensorFlow Datasets writes, has no predictions.
        return [
            Records(file, folder, stamp)
            for file, stamp in stamped
            if not stamp.startswith("0 bytes")
        ]
    return [
        part
        for file, stamp in stamped
        for part in parts_of_parquet(file, part_size, column, folder, stamp)
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
) -> tuple[list[Part], tuple[str, ...]]:
    """The parts of a labeled dataset, and the names of its classes.

    Args:
        data, split, data_dir: as in `keras_cait.datasets.open_dataset`.
        part_size: images per part.
        **part: `validation_fraction` and `fold`, as in `open_dataset`.

    Raises:
        ValueError: as in `open_dataset`.

    Example:
    >>> parts, classes = parts_of_dataset("digits", "validation", None, 256)
    >>> len(parts), classes[:2]
    (4, ('0', '1'))
    """
    # The workers of a cluster start in another folder.
    data_dir = data_dir and Path(data_dir).absolute()
    dataset = open_dataset(data, split, data_dir, **part)
    count = len(dataset)
    paths = [str(file.absolute()) for file in dataset.files]
    parts = parts_of_files(paths, part_size, "", dataset.labels) or [
        Examples(data, split, data_dir, start, min(start + part_size, count))
        for start in range(0, count, part_size)
    ]
    return parts, dataset.class_names
