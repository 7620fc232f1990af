"""`history.csv`: a row for every epoch of a run."""

import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path

from keras_cait.files import write_text

COLUMNS: tuple[str, ...] = (
    "epoch",
    "loss",
    "accuracy",
    "val_accuracy",
    "val_top5",
    "val_loss",
    "val_raw_accuracy",
    "val_raw_loss",
    "gradient_norm",
    "learning_rate",
    "images_per_second",
    "data_wait",
)
UNKNOWN = "NA"  # the epoch was not evaluated, or its speed not measured


def read_history(path: Path) -> list[dict[str, str]]:
    """The rows of `history.csv`.

    Raises:
        ValueError: the file is not the history of a run.
    """
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    needed = {"epoch", "loss", "accuracy", "val_accuracy"}
    if not rows or not needed <= rows[-1].keys():
        raise ValueError(f"{str(path)!r} is not the history of a run.")
    return rows


def numbers(rows: list[dict[str, str]], column: str) -> list[float]:
    """The values of a column; those that are unknown are not a number.

    Example:
    >>> numbers([{"val_loss": "0.5"}, {"val_loss": "NA"}], "val_loss")
    [0.5, nan]
    """
    values = (row.get(column) or UNKNOWN for row in rows)
    return [math.nan if value == UNKNOWN else float(value) for value in values]


class History:
    """Writes `history.csv`, after dropping the epochs that are run again.

    Args:
        path: the file.
        epoch: first epoch that is run, counted from 0.
    """

    def __init__(self, path: Path, epoch: int):
        self.path = path
        self.rows: list[Mapping[str, object]] = []
        if path.exists() and epoch:
            rows = read_history(path)
            self.rows += [row for row in rows if int(row["epoch"]) < epoch]

    def add(self, epoch: int, values: Mapping[str, float]) -> None:
        """Adds the row of an epoch."""
        known = {
            name: value
            for name, value in values.items()
            if math.isfinite(value)
        }
        self.rows.append({"epoch": epoch, **known})
        text = io.StringIO()
        writer = csv.DictWriter(
            text, COLUMNS, restval=UNKNOWN, extrasaction="ignore"
        )
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.path, text.getvalue())
