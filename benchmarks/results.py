"""Tables of measurements: printed as Markdown, stored as JSON."""

import json
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    *("keras", "keras-hub", "tensorflow", "jax", "timm", "torch"),
    *("onnxruntime", "openvino", "ai-edge-litert"),
)

# Numbers by row and column; a string says why there is no number.
Rows = Mapping[str, Mapping[str, float | int | str | None]]


def check_output(kind: Any, path: Path | None) -> None:
    """Checks that the output can be written, before the measurements.

    Raises:
        ValueError: it is a folder, or inside a file.
    """
    # Not above: a baseline's process would import Keras and count its memory.
    from keras_cait.files import folder_path

    if path:
        folder_path(path.parent)
        if path.is_dir():
            raise ValueError(f"{str(path)!r} is a folder.")


AT_LEAST_1 = Number(gte=1)
Count = Annotated[int, Parameter(validator=AT_LEAST_1)]
Rounds = Annotated[
    int,
    Parameter(
        name="--rounds",
        validator=AT_LEAST_1,
        help="Timed runs; the fastest counts.",
    ),
]
Output = Annotated[
    Path | None,
    Parameter(
        name="--output", validator=check_output, help="JSON file to write."
    ),
]


def show(title: str, rows: Rows) -> None:
    """Prints a table as Markdown."""
    print(f"\n{title}\n\n{markdown(rows)}", flush=True)


def write(
    tables: Mapping[str, Rows], path: Path | None, machine: str | None = None
) -> None:
    """Writes tables with the date, machine and versions as JSON.

    Args:
        tables: rows by title.
        path: file to write; `None` writes nothing.
        machine: what was measured; `None` is the processor.
    """
    if path is None:
        return
    # Not above: a baseline's process would import Keras and count its memory.
    from keras_cait.files import write_text

    record = {
        "date": date.today().isoformat(),
        "machine": machine or f"{processor()}, {os.cpu_count()} cores",
        "versions": versions(),
        "tables": tables,
    }
    write_text(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def read(name: str, folder: Path = RESULTS) -> dict[str, Any]:
    """Reads the record of a benchmark from `benchmarks/results/`."""
    return json.loads((folder / f"{name}.json").read_text())


def processor() -> str:
    """Name of the CPU."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that take part."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def markdown(rows: Rows, first: str = "Run") -> str:
    """A Markdown table with the columns of all rows.

    Args:
        rows: numbers by row and column.
        first: header of the column with the rows' names.

    Example:
    >>> print(markdown({"timm": {"images/s": 12.345}}))
    | Run | images/s |
    | --- | --- |
    | timm | 12.3 |
    """
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    lines = [(first, *columns), ("---",) * (1 + len(columns))]
    lines += [
        (name, *(text(row.get(column)) for column in columns))
        for name, row in rows.items()
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def text(value: float | int | str | None) -> str:
    """A float with at least three digits; anything else as it is.

    Example:
    >>> text(0.12345), text(1234.5), text(30), text(None)
    ('0.123', '1,234', '30', '')
    """
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}"
    return "" if value is None else str(value)
