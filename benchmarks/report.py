"""Fills the generated regions of README.md, CONTRIBUTING.md and docs/.

A region looks like this; the comment names a function of benchmarks/tables.py
and its arguments:

    <!-- generated: benchmark inference -->
    ...
    <!-- end -->
"""

import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import matplotlib

matplotlib.use("Agg")

from cyclopts import Parameter
from matplotlib import pyplot as plt

from benchmarks import tables
from benchmarks.command import benchmark_app, run
from benchmarks.gpu import card
from benchmarks.results import RESULTS, read
from keras_cait.files import write_text
from training.study.tables import figure as draw_study

ROOT = Path(__file__).parents[1]
DOCUMENTS = (
    *(ROOT / "README.md", ROOT / "CONTRIBUTING.md"),
    *sorted((ROOT / "docs").glob("*.md")),
)
REGION = re.compile(
    r"(<!-- generated: (.+?) -->)(.*?)(<!-- end -->)", re.DOTALL
)

# Each benchmark of docs/benchmarks.md, and the options to measure it with.
BENCHMARKS: dict[str, list[str]] = {
    "inference": [],
    "latency": [],
    "training": [],
    "checkpoints": [],
    "gpu": ["--tasks", "inference"],
    "pipeline": [],
    "batch": [],
    "serving": [],
    "litert": ["--variants", "XXS24", "XS24", "S24"],
    "int8": [],
    "loading": [],
    "startup": [],
    "rewrites": [],
    "images": [],
}
NEEDS_GPU = {"gpu"}


def fill(text: str) -> str:
    """Fills the generated regions of a Markdown text.

    A region on one line stays on one line.

    Example:
    >>> fill("<!-- generated: speed_limit --><!-- end -->")
    Traceback (most recent call last):
    ValueError: benchmarks/tables.py has no function 'speed_limit'.
    """

    def filled(region: re.Match[str]) -> str:
        start, call, before, end = region.groups()
        name, *arguments = call.split()
        function = getattr(tables, name, None)
        if function is None:
            raise ValueError(f"benchmarks/tables.py has no function {name!r}.")
        gap = "\n\n" if "\n" in before else ""
        return f"{start}{gap}{function(*arguments)}{gap}{end}"

    return REGION.sub(filled, text)


def draw(record: dict[str, Any], path: Path) -> None:
    """Draws the first column of each table as bars, keras-cait in color.

    Only of numbers: `yes` and `refused` have no bars.
    """
    drawn = {}
    for title, rows in record["tables"].items():
        column = next(iter(next(iter(rows.values()))))
        bars = {
            name: row[column]
            for name, row in rows.items()
            if isinstance(row.get(column), int | float)
        }
        if bars and len(rows) > 1:
            drawn[title] = column, bars
    columns = min(2, len(drawn))
    lines = -(-len(drawn) // columns)
    longest = max(len(bars) for _, bars in drawn.values())
    figure, grid = plt.subplots(
        lines,
        columns,
        figsize=(4.6 * columns + 1, (0.24 * longest + 0.9) * lines),
        layout="constrained",
        squeeze=False,
    )
    for axes in grid.flat[len(drawn) :]:
        axes.remove()
    shown = zip(grid.flat, drawn.items(), strict=False)
    for axes, (title, (column, bars)) in shown:
        others = ("timm", "ONNX", "OpenVINO", "ZeroModels", "model.export")
        axes.barh(
            list(bars),
            list(bars.values()),
            color=["0.7" if n.startswith(others) else "C0" for n in bars],
        )
        axes.invert_yaxis()
        axes.set_title(title, fontsize="small", loc="left")
        axes.set_xlabel(column, fontsize="small")
        axes.tick_params(labelsize="x-small")
        axes.locator_params(axis="x", nbins=5)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def run_benchmark(name: str) -> None:
    """Measures, and stores the record."""
    if name in NEEDS_GPU and not card():
        print(f"{name} needs a GPU.")
        return
    start = time.monotonic()
    command = [sys.executable, "-m", f"benchmarks.{name}", *BENCHMARKS[name]]
    output = str(RESULTS / f"{name}.json")
    subprocess.run([*command, "--output", output], check=True)
    print(f"{name} took {(time.monotonic() - start) / 60:.1f} minutes.")


app = benchmark_app("report", __doc__)


@app.default
def main(
    *names: str, measure: Annotated[bool, Parameter(negative=())] = False
) -> None:
    """Rewrites the generated tables and figures of the documents.

    Args:
        names: Benchmarks to measure. Default: all.
        measure: Run benchmarks first. It takes about an hour on 2 cores and
            needs an otherwise idle machine. Those of a GPU are skipped where
            there is none.
    """
    for name in names:
        if name not in BENCHMARKS:
            raise ValueError(
                f"There is no benchmark {name!r}. Choose from "
                f"{', '.join(BENCHMARKS)}."
            )
    if names and not measure:
        raise ValueError(f"Add --measure to measure {', '.join(names)}.")
    for name in BENCHMARKS:
        if measure and name in (names or BENCHMARKS):
            run_benchmark(name)
        draw(read(name), ROOT / "docs" / f"benchmark-{name}.png")
    for name, results in read("studies")["tables"].items():
        path = ROOT / "docs" / f"study-{name}.png"
        draw_study(name, list(results.values()), path)
    for path in DOCUMENTS:
        text = path.read_text()
        if fill(text) != text:
            write_text(path, fill(text))
            print(path.relative_to(ROOT))


if __name__ == "__main__":
    run(app)
