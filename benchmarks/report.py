"""One page of all numbers, docs/benchmarks.md, with a figure for each.

    python -m benchmarks.report            # of what is in benchmarks/results/
    python -m benchmarks.report --run      # measures all of it anew, first

Every benchmark writes `benchmarks/results/NAME.json` when it is run with
`--output` and this path, or by `--run`, which takes about an hour on 2 cores
and wants a machine that does nothing else.
"""

import argparse
import ast
import json
import subprocess
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt

from benchmarks.record import markdown

ROOT = Path(__file__).parents[1]
# In the order of the page, each with what it is run with.
BENCHMARKS = {
    "inference": [],
    "training": [],
    "pipeline": [],
    "serving": ["--xla"],
    "litert": ["--variants", "XXS24", "XS24", "S24"],
    "loading": [],
    "startup": [],
    "rewrites": [],
}


def page(results, figures):
    """The page.

    Args:
        results: folder of the JSON files.
        figures: folder of the page, for its figures.

    Returns:
        str, Markdown.
    """
    parts = [
        "# Benchmarks",
        "Ours beside what one would use instead, in turns in one run. The "
        "machines are noisy: differences of a few percent say nothing. The "
        "first column is drawn.",
    ]
    for name in BENCHMARKS:
        path = results / f"{name}.json"
        if not path.exists():
            continue
        record = json.loads(path.read_text())
        code = (ROOT / "benchmarks" / f"{name}.py").read_text()
        about = ast.get_docstring(ast.parse(code))
        versions = ", ".join(
            f"{package} {version}"
            for package, version in record["versions"].items()
        )
        figure = f"benchmark-{name}.png"
        draw(record["tables"], figures / figure)
        parts += [
            f"## {name.capitalize()}",
            about.partition("\n")[0],
            f"`python -m benchmarks.{name}`, {record['date']}, "
            f"{record['machine']}; {versions}.",
            f"![The first column of each table]({figure})",
        ]
        for title, rows in record["tables"].items():
            parts += [f"**{title}**", markdown(rows)]
    return "\n\n".join(parts) + "\n"


def draw(tables, path):
    """Bars of the first column of each table; ours are in colour."""
    tables = {title: rows for title, rows in tables.items() if len(rows) > 1}
    columns = min(3, len(tables))
    lines = -(-len(tables) // columns)
    longest = max(map(len, tables.values()))
    drawing, grid = plt.subplots(
        lines,
        columns,
        figsize=(3.6 * columns + 1, (0.24 * longest + 0.9) * lines),
        layout="constrained",
        squeeze=False,
    )
    for axes in grid.flat[len(tables) :]:
        axes.remove()
    for axes, (title, rows) in zip(grid.flat, tables.items(), strict=False):
        column = next(iter(next(iter(rows.values()))))
        bars = {
            name: row[column]
            for name, row in rows.items()
            if isinstance(row.get(column), int | float)
        }
        others = ("timm", "ONNX", "OpenVINO", "KerasFormers", "model.export")
        axes.barh(
            list(bars),
            list(bars.values()),
            color=["0.7" if n.startswith(others) else "C0" for n in bars],
        )
        axes.invert_yaxis()
        axes.set_title(title, fontsize="small", loc="left")
        axes.set_xlabel(column, fontsize="small")
        axes.tick_params(labelsize="x-small")
        axes.spines[["top", "right"]].set_visible(False)
    drawing.savefig(path, dpi=110)
    plt.close(drawing)


def main():
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    arguments.add_argument(
        "--run", action="store_true", help="run all benchmarks first"
    )
    results = ROOT / "benchmarks" / "results"
    results.mkdir(exist_ok=True)
    if arguments.parse_args().run:
        for name, options in BENCHMARKS.items():
            module, output = f"benchmarks.{name}", results / f"{name}.json"
            command = [sys.executable, "-m", module, *options]
            subprocess.run([*command, "--output", str(output)], check=True)
    docs = ROOT / "docs"
    (docs / "benchmarks.md").write_text(page(results, docs))
    print(docs / "benchmarks.md")


if __name__ == "__main__":
    main()
