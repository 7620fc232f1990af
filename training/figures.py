"""Figures of a run, for its report and TensorBoard."""

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from training.metrics import Predictions

ACCENT = (0.85, 0.4, 0.1)
MOST_NUMBERED = 30  # classes whose counts are legible
LONGEST = 16  # characters of a text beside others


def panel(width: float, height: float, **labels: Any) -> tuple[Figure, Axes]:
    """A figure and its axes, without the lines at the top and right."""
    figure = Figure((width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set(**labels)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def curves(
    epochs: Sequence[int], values: Mapping[str, np.ndarray], ylabel: str
) -> Figure:
    """Values by epoch, a line each; what is not a number is left out.

    Args:
        epochs: numbers of the epochs, from 1.
        values: one value per epoch, by what the line shows.
        ylabel: what the values are.
    """
    figure, axes = panel(5, 3.2, xlabel="epoch", ylabel=ylabel)
    for place, (name, line) in enumerate(values.items()):
        known = np.isfinite(line)
        axes.plot(
            np.array(epochs)[known],
            line[known],
            label=name,
            color=f"C{place}",
            marker="o" if sum(known) == 1 else "",
        )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def confusion_matrix(counts: np.ndarray, labels: Sequence[str]) -> Figure:
    """Labels in rows, predictions in columns; the color marks mistakes.

    Args:
        counts: array `(classes, classes)` of ints.
        labels: names of the classes.
    """
    side = float(np.clip(1.5 + 0.35 * len(labels), 4.5, 9))
    figure, axes = panel(side, side, xlabel="predicted", ylabel="label")
    labels = [shortened(label) for label in labels]
    mistakes = np.where(np.eye(len(labels), dtype=bool), 0, counts)
    colors = np.empty((*counts.shape, 4))
    colors[..., :3] = ACCENT
    # Never opaque, so that the numbers are readable.
    share = mistakes / max(mistakes.max(), 1)
    colors[..., 3] = np.where(mistakes, 0.1 + 0.5 * share, 0)
    axes.imshow(colors)
    if len(labels) <= MOST_NUMBERED:
        for row, column in np.argwhere(counts):
            axes.text(
                column,
                row,
                str(counts[row, column]),
                ha="center",
                va="center",
                fontsize=8,
                fontweight="bold" if row == column else "normal",
            )
        ticks = range(len(labels))
        is_long = max(map(len, labels)) > 3
        rotation = 90 if is_long else 0
        # A dollar sign in a label begins no formula.
        axes.set_xticks(ticks, labels, rotation=rotation, parse_math=False)
        axes.set_yticks(ticks, labels, parse_math=False)
    else:
        axes.plot(*np.diag_indices(len(labels)), color="0.5", alpha=0.4)
    axes.spines[["top", "right"]].set_visible(True)
    return figure


def calibration(found: Predictions, bins: int = 10) -> Figure:
    """Accuracy of the predictions by their confidence.

    Args:
        found: predictions of labeled images.
        bins: number of intervals of equal width.
    """
    places = np.ceil(found.confidence * bins).astype(int).clip(1) - 1
    counts = np.bincount(places, minlength=bins)
    known = counts > 0
    hits = np.bincount(places, found.correct[:, 0], bins)[known] / counts[known]
    sure = np.bincount(places, found.confidence, bins)[known] / counts[known]
    figure, axes = panel(
        *(4.2, 3.6),
        xlabel="mean confidence of the predictions",
        ylabel="share that is right",
        xlim=(0, 1.05),  # with room for the dots of a good model
        ylim=(0, 1.05),
    )
    axes.plot((0, 1), (0, 1), color="0.5", linestyle=":")
    sizes = 15 + 250 * counts[known] / counts.sum()
    axes.plot(sure, hits, color="C0", alpha=0.5)
    axes.scatter(sure, hits, sizes, color="C0", clip_on=False, zorder=3)
    axes.grid(alpha=0.3)
    return figure


def gallery(rows: Sequence[np.ndarray], titles: Sequence[str]) -> Figure:
    """Images with titles, four beside each other.

    Args:
        rows: uint8 arrays `(images, height, width, 3)` of one size; the images
            of the later ones are below those of the first.
        titles: titles of the first row, of up to two lines; those that begin
            with "✗" are marked.
    """
    columns = min(4, len(titles))
    lines = -(-len(titles) // columns)
    _, height, width, _ = rows[0].shape
    high, gap = 1.25 * len(rows) * height / width, 0.05  # inches
    tall = high + 0.4
    figure = Figure((1.25 * columns, tall * lines))
    for place, title in enumerate(titles):
        line, column = divmod(place, columns)
        left, bottom = 1.25 * column, tall * (lines - 1 - line)
        figure.text(
            (left + 0.625) / (1.25 * columns),
            (bottom + high) / (tall * lines),
            "\n".join(map(shortened, title.split("\n"))),
            ha="center",
            va="bottom",
            fontsize=8,
            color=ACCENT if title.startswith("✗") else "black",
            parse_math=False,
        )
        pixels = np.concatenate([images[place] for images in rows])
        axes = figure.add_axes(
            (
                (left + gap / 2) / (1.25 * columns),
                bottom / (tall * lines),
                (1.25 - gap) / (1.25 * columns),
                high / (tall * lines),
            )
        )
        axes.imshow(pixels)
        axes.set_axis_off()
    return figure


def shortened(text: str) -> str:
    """A text, or the ends of one that would cover its neighbors.

    Example:
    >>> shortened("Greater Swiss Mountain dog")
    'Greater …tain dog'
    """
    half = LONGEST // 2
    return text if len(text) <= LONGEST else f"{text[:half]}…{text[-half:]}"


def pixels(figure: Figure, dpi: int = 100) -> np.ndarray:
    """A figure as a uint8 array `(height, width, 4)`."""
    content = saved(figure, format="raw", dpi=dpi)
    width = round(figure.get_size_inches()[0] * dpi)
    return np.frombuffer(content, "uint8").reshape(-1, width, 4)


def saved(figure: Figure, **options: Any) -> bytes:
    """A figure as a file. `options` are those of `savefig`."""
    content = io.BytesIO()
    with warnings.catch_warnings():
        # Of labels in scripts that matplotlib's font lacks. A browser has them.
        warnings.filterwarnings("ignore", "Glyph")
        figure.savefig(content, **options)
    return content.getvalue()
