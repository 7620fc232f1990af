"""Writes the report page of a finished run.

python -m training.report runs/digits
"""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Annotated

# First, as it explains imports that fail.
from keras_cait.command_line import run

# isort: split
import keras
import numpy as np
from cyclopts import App, Parameter

import keras_cait
from keras_cait.files import image_files, locked, read_json, write_text
from keras_cait.labels import read_labels
from keras_cait.loading import load_model
from training.loop.history import read_history
from training.report_sections import (
    Example,
    classes,
    exported,
    heading,
    learning_curves,
    looks,
    mistakes,
    next_steps,
    reliability,
    settings,
)

PAGE = "report.html"
BATCH = 32

app = App(name="python -m training.report", help=__doc__, version_flags=[])


@app.default
def report(
    folder: Annotated[
        Path, Parameter(name="RUN", help="Folder of a finished run.")
    ],
    /,
) -> None:
    """Writes report.html, one file with all its images, into a run's folder.

    Training ends with it. If verify.json is there, the page also lists the
    exported files.
    """
    print(f"The report is {write_report(folder)}")


def write_report(folder: Path) -> Path:
    """Writes the report page of a finished run, and returns its path.

    Mistakes, attention and calibration are those of the images in
    `validation/`, at most 1,000.

    Raises:
        ValueError: the folder does not hold a finished run.
    """
    if not (folder / "model.keras").exists():
        advice = (
            "Train first: python -m training.train quickstart --output "
            f"{folder}"
        )
        if (folder / "recipe.json").exists():
            advice = "To resume it, repeat the command that started it."
        if (folder / "fold-0").is_dir():
            advice = f"Give one of its folds, such as {folder / 'fold-0'}"
        raise ValueError(
            f"{str(folder)!r} is not a finished run: it has no model.keras. "
            f"{advice}"
        )
    summary = read_json(folder / "summary.json", ["confusion", "top1"])
    recipe = read_json(folder / "recipe.json", ["data", "epochs"])
    labels = read_labels(folder / "labels.txt")
    history = read_history(folder / "history.csv")
    model = load_model(folder)
    counts = np.array(summary["confusion"])
    sections = [
        heading(folder, summary, recipe, model, counts),
        learning_curves(history),
        classes(counts, labels),
    ]
    examples = classified(model, folder / "validation", labels)
    if examples:
        sections += [
            mistakes(examples, labels),
            looks(model, examples, labels),
            reliability(examples),
        ]
    if (folder / "verify.json").exists():
        sections.append(exported(folder / "verify.json"))
    sections += [next_steps(folder, recipe), settings(recipe, summary)]
    template = Template(
        Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    )
    path = folder / PAGE
    with locked(path):
        text = template.substitute(
            title=escape(f"{folder.resolve().name}: {summary['top1']:.1%}"),
            body="\n".join(sections),
        )
        write_text(path, text)
    return path


def classified(
    model: keras.Model, folder: Path, labels: Sequence[str]
) -> list[Example]:
    """The images in a folder with one subfolder per class, classified."""
    files = [
        (file, label)
        for label, name in enumerate(labels)
        if any((folder / name).glob("*"))
        for file in image_files([folder / name])
    ]
    found = []
    for start in range(0, len(files), BATCH):
        batch = files[start : start + BATCH]
        images = np.stack([keras_cait.load_image(file) for file, _ in batch])
        scores = model.predict_on_batch(images)
        found += [
            Example(file, label, np.asarray(row, "float32"))
            for (file, label), row in zip(batch, scores, strict=True)
        ]
    return found


if __name__ == "__main__":
    run(app)
