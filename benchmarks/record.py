"""What every benchmark prints and writes: tables of numbers."""

import json
import os
import platform
from contextlib import suppress
from datetime import date
from importlib import metadata
from pathlib import Path

PACKAGES = (
    *("keras", "tensorflow", "timm", "torch", "onnxruntime", "openvino"),
    "ai-edge-litert",
)


def show(title, rows):
    """Prints a table in Markdown.

    Args:
        title: str.
        rows: dict of names to dicts of columns to numbers, or to str, such as
            why there is no number.
    """
    print(f"\n{title}\n\n{markdown(rows)}", flush=True)


def write(tables, path):
    """Writes tables, the machine, versions and the date, as JSON.

    Args:
        tables: dict of titles to rows, as for `show`.
        path: path of the file; `None` writes nothing.
    """
    if path is None:
        return
    record = {
        "date": date.today().isoformat(),
        "machine": f"{processor()}, {os.cpu_count()} cores",
        "versions": versions(),
        "tables": tables,
    }
    Path(path).write_text(json.dumps(record, indent=1) + "\n")


def processor():
    """The name of the CPU, as far as the system tells."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def versions():
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        # What is not installed did not take part.
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def markdown(rows):
    """A table whose columns are those of all rows, in their order."""
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    lines = [("", *columns), ("---",) * (1 + len(columns))]
    lines += [
        (name, *(text(row.get(column)) for column in columns))
        for name, row in rows.items()
    ]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def text(value):
    """A number with three digits or more, or what is said instead of it."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}"
    return "" if value is None else str(value)
