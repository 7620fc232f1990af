"""A short report of a finished run: `python -m training.report RUN`."""

import argparse
import csv
import json
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import matplotlib

matplotlib.use("Agg")

import keras
import numpy as np
from matplotlib import pyplot as plt

import keras_cait
from training.command import run


def report(folder):
    """Writes `report.md` and its pictures into a run's folder.

    Args:
        folder: path of a finished run; `verify.json` in it, if there, adds the
            exported files.

    Raises:
        ValueError: the folder holds no finished run.
    """
    if not (folder / "model.keras").exists():
        raise ValueError(
            f"{folder} holds no finished run: model.keras is missing. Train "
            f"first: python -m training.train quickstart --output {folder}"
        )
    evaluation = json.loads((folder / "summary.json").read_text())
    labels = (folder / "labels.txt").read_text().splitlines()
    model = keras.models.load_model(folder / "model.keras")
    with open(folder / "history.csv", newline="") as file:
        history = list(csv.DictReader(file))

    learning_curve(history, folder / "learning_curve.png")
    confusion_matrix(
        np.array(evaluation["confusion"]), labels, folder / "confusion.png"
    )
    attention(model, labels, folder)
    count = sum(map(sum, evaluation["confusion"]))
    sections = [
        f"# A CaiT of {model.count_params():,} parameters\n\n"
        f"After {len(history)} epochs **{evaluation['top1']:.1%}** of "
        f"{count:,} held-out images are right.",
        "![Learning curve](learning_curve.png)",
        "![Confusion matrix](confusion.png)",
        "Where the class token looks, in the mean over the heads of the last "
        "class-attention block:\n\n![Class attention](attention.png)",
    ]
    if (folder / "verify.json").exists():
        sections.append(
            exported(json.loads((folder / "verify.json").read_text()))
        )
    # Last, so that a report that is there is whole.
    (folder / "report.md").write_text("\n\n".join(sections) + "\n")


def learning_curve(history, path):
    """Loss and accuracy by epoch, side by side."""
    epochs = np.array([int(row["epoch"]) + 1 for row in history])
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(9, 3.2), layout="constrained"
    )
    left.plot(epochs, [float(row["loss"]) for row in history], color="C0")
    left.set(xlabel="epoch", ylabel="loss", title="Training loss")
    for key, name, color in (
        ("accuracy", "training, augmented", "C0"),
        ("val_accuracy", "held out, averaged weights", "C1"),
    ):
        values = 100 * np.array(
            [float(row[key].replace("NA", "nan")) for row in history]
        )
        known = np.isfinite(values)  # the others were not evaluated
        right.plot(epochs[known], values[known], label=name, color=color)
    right.set(xlabel="epoch", ylabel="top-1 / %", title="Accuracy")
    right.legend(loc="lower right")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def confusion_matrix(counts, labels, path):
    """Labels in rows, predictions in columns; the mistakes stand out."""
    mistakes = np.where(np.eye(len(labels), dtype=bool), 0, counts)
    figure, axes = plt.subplots(figsize=(4.8, 4.8), layout="constrained")
    # Half of the colours, so that the numbers stay readable.
    axes.imshow(mistakes, cmap="Oranges", vmax=2 * mistakes.max())
    for row, column in np.ndindex(counts.shape):
        if counts[row, column]:
            axes.text(
                column,
                row,
                counts[row, column],
                ha="center",
                va="center",
                fontweight="bold" if row == column else "normal",
            )
    ticks = range(len(labels))
    axes.set_xticks(ticks, labels)
    axes.set_yticks(ticks, labels)
    axes.set(xlabel="predicted", ylabel="label", title="Held-out images")
    figure.savefig(path, dpi=120)


def attention(model, labels, folder):
    """Class attention over one held-out picture of each class."""
    files = [
        sorted((folder / "held_out" / name).iterdir())[0] for name in labels
    ]
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
        grid[1, column].imshow(keras_cait.attention_maps.overlay(image, map))
    for axes in grid.flat:
        axes.set_axis_off()
    figure.savefig(folder / "attention.png", dpi=120)


def exported(rows):
    """The exported files beside the Keras model, as a table."""
    lines = [
        "The exported files beside the Keras model, on the held-out images "
        "from their encoded bytes; the last column is the answer to the first "
        "of them:\n",
        "| file | top-1 | agreement | max difference | ms | MB | first |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        label, score = row["example"]
        lines.append(
            f"| {row['name']} | {row['top1']:.1%} | {row['agreement']:.1%} | "
            f"{row['max_difference']:.1e} | {row['milliseconds']:.1f} | "
            f"{row['megabytes']:.1f} | {label} ({score:.0%}) |"
        )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(
        prog="python -m training.report", description=__doc__
    )
    parser.add_argument("run", type=Path, help="folder of a finished run")
    report(parser.parse_args().run)


if __name__ == "__main__":
    run(main)
