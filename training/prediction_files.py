"""Reads what `python -m export predict` has written for a labeled dataset."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import json, parquet

from keras_cait.decoding.readable import check_readable
from keras_cait.files import read_json
from training.metrics import Predictions, join

# What is read of a row. The label is the name of the right class.
COLUMNS = pa.schema(
    {
        "image": pa.string(),
        "classes": pa.list_(pa.string()),
        "scores": pa.list_(pa.float32()),
        "label": pa.string(),
        "error": pa.string(),
    }
)
TOP = 5  # classes per image
# Of the file that says what the job is.
KEYS = (
    *("data", "split", "parts", "model", "weights", "image_size", "top"),
    "format",
)


def read_predictions(
    folder: Path, max_unreadable: int = 0
) -> tuple[Predictions, dict[str, Any], list[str]]:
    """Reads the predictions for all images of a labeled dataset.

    Args:
        folder: output of `python -m export predict --data`.
        max_unreadable: maximum number of images without predictions, because
            they cannot be read.

    Returns:
        The predictions; what the job was, as it says itself; and the names of
        images that cannot be read.

    Raises:
        ValueError: the folder has no predictions, not all of them, no labels or
            fewer than 5 classes; or more images cannot be read.
    """
    if not (folder / "_job.json").is_file():
        raise ValueError(
            f"{str(folder)!r} has no predictions. Expected the output of "
            "python -m export predict."
        )
    job = read_json(folder / "_job.json", KEYS)
    if job["data"] is None:
        raise ValueError(
            f"The predictions in {str(folder)!r} have no labels. Repeat them "
            "with --data instead of --input."
        )
    if job["top"] < TOP:
        raise ValueError(
            f"The predictions in {str(folder)!r} have {job['top']} classes per "
            f"image. Repeat them with --top {TOP}."
        )
    files = sorted(folder.glob(f"part-*.{job['format']}"))
    if len(files) < job["parts"]:
        raise ValueError(
            f"{str(folder)!r} has {len(files)} of {job['parts']} files. Repeat "
            "the command of its predictions with --resume."
        )
    count, found, unreadable = 0, [], []
    for file in files:
        rows = read_rows(file)
        count += len(rows)
        is_good = pc.is_null(rows["error"])
        bad, good = rows.filter(pc.invert(is_good)), rows.filter(is_good)
        unreadable += bad["image"].to_pylist()
        if good["label"].null_count:
            raise ValueError(
                f"Images of {job['data']} have no label, or several. Evaluate "
                "the model itself: --model."
            )
        if len(good):
            found.append(compared(good))
    check_readable(unreadable, count, max_unreadable)
    return join(found), job, unreadable


def read_rows(file: Path) -> pa.Table:
    """The rows of a file."""
    if file.suffix == ".parquet":
        return parquet.read_table(file, columns=COLUMNS.names).cast(COLUMNS)
    options = json.ParseOptions(
        explicit_schema=COLUMNS, unexpected_field_behavior="ignore"
    )
    return json.read_json(file, parse_options=options)


def compared(rows: pa.Table) -> Predictions:
    """The predictions of rows without an error.

    Example:
    >>> row = {"classes": ["cat", "dog"], "scores": [0.7, 0.3], "label": "cat"}
    >>> compared(pa.Table.from_pylist([row])).correct
    array([[ True, False]])
    """
    classes, scores = (
        rows[name].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        for name in ("classes", "scores")
    )
    labels = rows["label"].to_numpy()
    correct = classes.reshape(len(rows), -1)[:, :TOP] == labels[:, None]
    return Predictions(
        correct,
        np.ones(len(rows), bool),
        scores.reshape(len(rows), -1)[:, 0].astype("float32"),
    )
