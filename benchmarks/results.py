"""Tables of measurements: printed as Markdown, stored as JSON."""

import json
import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    *("keras", "keras-hub", "tensorflow", "jax", "timm", "torch"),
    *("onnxruntime", "openvino", "nncf", "ai-edge-litert", "zeromodels"),
)
# What processors have beyond AVX, the newest first: flag of Linux and name.
INSTRUCTION_SETS = {
    "amx_int8": "AVX-512 with VNNI and AMX",
    "avx512_vnni": "AVX-512 with VNNI",
    "avx512f": "AVX-512",
    "avx_vnni": "AVX2 with VNNI",
    "avx2": "AVX2",
}

# Numbers by row and column; a string is a number within the noise, or says why
# there is none.
Rows = Mapping[str, Mapping[str, float | int | str | None]]


def show(title: str, rows: Rows) -> None:
    """Prints a table as Markdown."""
    print(f"\n{title}\n\n{markdown(rows)}", flush=True)


def write(
    tables: Mapping[str, Rows],
    path: Path | None,
    rounds: int | None = None,
    machine: str | None = None,
) -> None:
    """Writes tables with the date, machine and versions as JSON.

    Args:
        tables: rows by title.
        path: file to write; `None` writes nothing.
        rounds: number of rounds; the tables show their medians.
        machine: what was measured; `None` is the processor.
    """
    if path is None:
        return
    # Not above: a baseline's process would import Keras and count its memory.
    from keras_cait.files import write_text

    record = {
        "date": date.today().isoformat(),
        "machine": machine or this_machine(),
        "versions": versions(),
        **({"shows": f"Medians of {rounds} rounds."} if rounds else {}),
        "tables": tables,
    }
    write_text(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def read(name: str, folder: Path = RESULTS) -> dict[str, Any]:
    """Reads the record of a benchmark from `benchmarks/results/`."""
    return json.loads((folder / f"{name}.json").read_text())


def this_machine() -> str:
    """Processor, instruction set and number of threads."""
    facts = {}
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            facts[name.strip()] = value.strip()
    words = [
        facts.get("model name") or platform.processor() or platform.machine(),
        instruction_set(facts.get("flags", "")),
        f"{os.cpu_count()} threads",
    ]
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA")
    if limit:
        words.append(f"oneDNN limited to {limit}")
    return ", ".join(filter(None, words))


def instruction_set(flags: str) -> str:
    """The newest instructions for matrix products that a processor has.

    Example:
    >>> instruction_set("fma avx2 avx512f avx512_vnni")
    'AVX-512 with VNNI'
    """
    found = (
        name for flag, name in INSTRUCTION_SETS.items() if flag in flags.split()
    )
    return next(found, "")


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
