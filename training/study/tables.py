"""The table and the figure of a study."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import numpy as np
from matplotlib import pyplot as plt

from training.study.cells import Cell


def grid(
    results: Iterable[dict[str, Any]],
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Results by row and column, in their order."""
    found: dict[str, dict[str, list]] = {}
    for result in results:
        row = found.setdefault(result["row"], {})
        row.setdefault(result["column"], []).append(result)
    return found


def table(cells: Sequence[Cell], results: Iterable[dict[str, Any]]) -> str:
    """A Markdown table: top-1 in percent, mean and deviation over seeds.

    The paper's figure is in parentheses. A dagger counts failed trainings,
    whose loss or gradient was not finite.

    Args:
        cells: all cells of the study.
        results: results of `train`; some may be missing.
    """
    found = grid(results)
    columns = list(dict.fromkeys(cell.column for cell in cells))
    lines = [
        "| Model | " + " | ".join(columns) + " |",
        "|" + "---|" * (1 + len(columns)),
    ]
    for row in dict.fromkeys(cell.row for cell in cells):
        texts = []
        for column in columns:
            cell = [c for c in cells if (c.row, c.column) == (row, column)]
            text = described(found.get(row, {}).get(column, []))
            if cell and cell[0].paper is not None:
                text = f"{text} ({cell[0].paper})".strip()
            texts.append(text)
        lines.append(f"| {row} | {' | '.join(texts)} |")
    return "\n".join(lines) + "\n"


def described(results: Sequence[dict[str, Any]]) -> str:
    """Mean and deviation of the trainings of one cell."""
    accuracies = [100 * r["top1"] for r in results if r["top1"] is not None]
    failed = len(results) - len(accuracies)
    words = []
    if len(accuracies) == 1:
        words.append(f"{accuracies[0]:.1f}")
    elif accuracies:
        deviation = np.std(accuracies, ddof=1)
        words.append(f"{np.mean(accuracies):.1f} ± {deviation:.1f}")
    if failed:
        words.append(f"† {failed} of {len(results)}")
    return " ".join(words)


def figure(study: str, results: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws top-1 by column, with a line per row; or by row, of one column.

    Every training is a dot, or a cross on the axis if it failed.
    """
    found = grid(results)
    columns = list(dict.fromkeys(r["column"] for r in results))
    drawing, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    if len(columns) == 1:
        places = list(found)
        series = {columns[0]: {row: found[row][columns[0]] for row in found}}
    else:
        places, series = columns, found
    for i, (name, cells) in enumerate(series.items()):
        # Side by side: none hides another.
        shift = 0.5 * ((i + 0.5) / len(series) - 0.5)
        line = []
        for place, trainings in cells.items():
            x = places.index(place) + shift
            good = [100 * r["top1"] for r in trainings if r["top1"] is not None]
            axes.plot([x] * len(good), good, ".", color=f"C{i}", alpha=0.4)
            failed = len(trainings) - len(good)
            axes.plot([x] * failed, [0] * failed, "x", color=f"C{i}")
            line.append((x, np.mean(good) if good else np.nan))
        style = "o-" if len(series) > 1 else "o"
        axes.plot(*zip(*line, strict=True), style, color=f"C{i}", label=name)
    if len(series) > 1:
        drawing.legend(loc="outside right upper", frameon=False)
    slanted = {"rotation": 20, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(
        range(len(places)), places, **({} if len(columns) > 1 else slanted)
    )
    axes.set(ylabel="top-1 on validation images / %", title=study)
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    drawing.savefig(path, dpi=150)
    plt.close(drawing)
