"""Writes a short report of a finished run.

python -m training.report runs/digits
"""

import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# First, as it explains imports that fail.
from keras_cait.command_line import run

# isort: split
import matplotlib

matplotlib.use("Agg")

import keras
import numpy as np
from cyclopts import App, Parameter
from matplotlib import pyplot as plt

import keras_cait
from keras_cait.attention_maps import overlay
from keras_cait.files import image_files, locked, read_json, write_text
from keras_cait.loading import load_model, read_labels

app = App(name="python -m training.report", help=__doc__, version_flags=[])


@app.default
def report(
    folder: Annotated[
        Path, Parameter(name="RUN", help="Folder of a finished run.")
    ],
    /,
) -> None:
    """Writes report.md and its images into a run's folder.

    If verify.json is there, the report also lists the exported files.

    Raises:
        ValueError: the folder does not hold a finished run.
    """
    if not (folder / "model.keras").exists():
        raise ValueError(
            f"{str(folder)!r} is not a finished run: it has no model.keras. "
            f"Train first: python -m training.train quickstart --output "
            f"{folder}"
        )
    summary = read_json(folder / "summary.json", ["confusion", "top1"])
    labels = read_labels(folder / "labels.txt")
    history = read_history(folder / "history.csv")
    trained = load_model(folder)
    count = sum(map(sum, summary["confusion"]))
    sections = [
        f"# A CaiT with {trained.count_params():,} parameters\n\n"
        f"Top-1 accuracy after {len(history)} epochs, on {count:,} validation "
        f"images: **{summary['top1']:.1%}**.",
        "![Learning curve](learning_curve.png)",
        "![Confusion matrix](confusion.png)",
        "Class attention: the mean over the heads of the last class-attention "
        "block.\n\n![Class attention](attention.png)",
    ]
    if (folder / "verify.json").exists():
        sections.append(exported(folder / "verify.json"))
    with locked(folder / "report.md"):
        attention(trained, labels, folder)
        learning_curve(history, folder / "learning_curve.png")
        confusion_matrix(
            np.array(summary["confusion"]), labels, folder / "confusion.png"
        )
        # Last: a report that exists is complete.
        write_text(folder / "report.md", "\n\n".join(sections) + "\n")


def read_history(path: Path) -> list[dict[str, str]]:
    """The rows of `history.csv`.

    Raises:
        ValueError: the file is not the history of a run.
    """
    with path.open(newline="") as file:
        history = list(csv.DictReader(file))
    columns = {"epoch", "loss", "accuracy", "val_accuracy"}
    if not history or not columns <= history[-1].keys():
        raise ValueError(f"{str(path)!r} is not the history of a run.")
    return history


def learning_curve(history: Sequence[dict[str, str]], path: Path) -> None:
    """Loss and accuracy by epoch, side by side."""
    epochs = np.array([int(row["epoch"]) + 1 for row in history])
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(9, 3.2), layout="constrained"
    )
    left.plot(epochs, [float(row["loss"]) for row in history], color="C0")
    left.set(xlabel="epoch", ylabel="loss", title="Training loss")
    for key, name, color in (
        ("accuracy", "training, augmented", "C0"),
        ("val_accuracy", "validation, EMA weights", "C1"),
    ):
        values = 100 * np.array(
            [float(row[key].replace("NA", "nan")) for row in history]
        )
        known = np.isfinite(values)  # the others were not evaluated
        right.plot(epochs[known], values[known], label=name, color=color)
    right.set(xlabel="epoch", ylabel="top-1 / %", title="Accuracy")
    right.legend(loc="lower right")
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def confusion_matrix(
    counts: np.ndarray, labels: Sequence[str], path: Path
) -> None:
    """Labels in rows, predictions in columns; colors mark the mistakes."""
    mistakes = np.where(np.eye(len(labels), dtype=bool), 0, counts)
    figure, axes = plt.subplots(figsize=(4.8, 4.8), layout="constrained")
    # Half of the color range keeps the numbers readable.
    axes.imshow(mistakes, cmap="Oranges", vmax=2 * mistakes.max())
    for row, column in np.ndindex(counts.shape):
        if counts[row, column]:
            axes.text(
                column,
                row,
                str(counts[row, column]),
                ha="center",
                va="center",
                fontweight="bold" if row == column else "normal",
            )
    ticks = range(len(labels))
    axes.set_xticks(ticks, labels)
    axes.set_yticks(ticks, labels)
    axes.set(xlabel="predicted", ylabel="label", title="Validation images")
    figure.savefig(path, dpi=120)


def attention(model: keras.Model, labels: Sequence[str], folder: Path) -> None:
    """Class attention over one validation image of each class."""
    files = [image_files([folder / "validation" / name])[0] for name in labels]
    images = np.stack([keras_cait.load_image(file) for file in files])
    maps = keras_cait.class_attention_maps(model, images)
    maps = maps[:, -1].mean(axis=1)  # last block, mean over heads
    names = [
        labels[index] for index in model.predict(images, verbose=0).argmax(-1)
    ]
    figure, grid = plt.subplots(
        2, len(files), figsize=(1.1 * len(files), 2.6), layout="constrained"
    )
    for column, (image, map, name) in enumerate(
        zip(images, maps, names, strict=True)
    ):
        grid[0, column].imshow(image)
        grid[0, column].set_title(name)
        grid[1, column].imshow(overlay(image, map))
    for axes in grid.flat:
        axes.set_axis_off()
    figure.savefig(folder / "attention.png", dpi=120)


def exported(path: Path) -> str:
    """The exported files beside the Keras model, as a table.

    Raises:
        ValueError: the file is not a result of `python -m export verify`.
    """
    lines = [
        "The exported files beside the Keras model, on the encoded validation "
        "images; the last column is the prediction for the first of them:\n",
        "| file | top-1 | agreement | max difference | ms | MB | first |",
        "|---|---|---|---|---|---|---|",
    ]
    try:
        for row in json.loads(path.read_text()):
            label, score = row["example"]
            lines.append(
                f"| {row['name']} | {row['top1']:.1%} | "
                f"{row['agreement']:.1%} | {row['max_difference']:.1e} | "
                f"{row['milliseconds']:.1f} | {row['megabytes']:.1f} | "
                f"{label} ({score:.0%}) |"
            )
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"{str(path)!r} is not a result of python -m export verify."
        ) from None
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line: `argv`, or that of the process."""
    run(app, argv)


if __name__ == "__main__":
    main()
