"""The sections of the report page of a run."""

import json
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

import keras_cait
from keras_cait.attention_maps import overlay, saliency_maps
from keras_cait.explanations import relevance_maps
from training.figures import calibration, confusion_matrix, curves
from training.loop.history import numbers
from training.loop.progress import duration
from training.metrics import (
    balanced_accuracy,
    calibration_error,
    class_accuracies,
    predictions,
)
from training.page import figure, section, svg, table

MISTAKES, LOOKS, WORST = 12, 10, 10
MOST_CLASSES = 100  # of a confusion matrix
CONTINUED = " \\\n    "


class Example(NamedTuple):
    """A validation image and its prediction.

    Attributes:
        file: the image, as the model sees it.
        label: number of its class.
        scores: float32 array `(classes,)` of probabilities.
    """

    file: Path
    label: int
    scores: np.ndarray

    @property
    def found(self) -> int:
        return int(self.scores.argmax())

    @property
    def score(self) -> float:
        return float(self.scores.max())


def heading(
    folder: Path,
    summary: Mapping[str, Any],
    recipe: Mapping[str, Any],
    model: keras.Model,
    counts: np.ndarray,
) -> str:
    """What was trained, and how good it is."""
    variant = f"-{recipe['variant']}" if recipe.get("variant") else ""
    height, width = model.input.shape[1:3]
    facts = {
        "Top-1 accuracy": f"{summary['top1']:.1%}",
        "Mean over classes": f"{balanced_accuracy(counts):.1%}",
        "Top-5 accuracy": (
            f"{summary['top5']:.1%}"
            if "top5" in summary and len(counts) > 5
            else None
        ),
        "Validation images": f"{counts.sum():,}",
        "Epochs": str(summary.get("epochs", recipe["epochs"])),
        "Training time": (
            duration(3600 * summary["training_hours"])
            if summary.get("training_hours")
            else None
        ),
        "Images per second": (
            f"{summary['images_per_second']:,.0f}"
            if summary.get("images_per_second")
            else None
        ),
        "Parameters": f"{model.count_params():,}",
        "Weights": summary.get("weights"),
    }
    items = "".join(
        f"<div><dt>{key}</dt><dd>{value}</dd></div>"
        for key, value in facts.items()
        if value
    )
    return (
        f"<h1>{escape(folder.resolve().name)}</h1>\n"
        f'<p class="quiet">CaiT{variant} at {height} x '
        f"{width} pixels, {len(counts)} classes of {escape(recipe['data'])}"
        f"</p>\n<dl>{items}</dl>"
    )


def learning_curves(history: list[dict[str, str]]) -> str:
    """Loss and accuracy by epoch."""
    epochs = [int(row["epoch"]) + 1 for row in history]

    def figure(columns: Mapping[str, str], ylabel: str, factor: float) -> str:
        lines = {
            name: factor * np.array(numbers(history, column))
            for name, column in columns.items()
        }
        known = {
            name: line
            for name, line in lines.items()
            if np.isfinite(line).any()
        }
        return svg(curves(epochs, known, ylabel))

    accuracy = figure(
        {
            "training, augmented": "accuracy",
            "validation, EMA weights": "val_accuracy",
            "validation, raw weights": "val_raw_accuracy",
        },
        *("top-1 / %", 100),
    )
    loss = figure(
        {
            "training, augmented": "loss",
            "validation, EMA weights": "val_loss",
            "validation, raw weights": "val_raw_loss",
        },
        *("loss", 1),
    )
    return section(
        "Learning curves",
        "Training images are augmented, and their loss includes label "
        "smoothing, so validation can be ahead of training.",
        f'<div class="beside">{accuracy}{loss}</div>',
    )


def classes(counts: np.ndarray, labels: Sequence[str]) -> str:
    """The confusion matrix if classes are few; the weakest classes; mix-ups."""
    images = counts.sum(axis=1)
    right = class_accuracies(counts)
    order = np.argsort(np.where(images, right, np.inf), kind="stable")
    weakest = table(
        ("class", "images", "right"),
        [
            (labels[i], f"{images[i]:,}", f"{right[i]:.1%}")
            for i in map(int, order[:WORST])
            if images[i]
        ],
    )
    mistaken = np.where(np.eye(len(labels), dtype=bool), 0, counts)
    places = np.argsort(-mistaken, axis=None, kind="stable")[:WORST]
    pairs = [
        (labels[row], labels[column], f"{mistaken[row, column]:,}")
        for row, column in (divmod(int(place), len(labels)) for place in places)
        if mistaken[row, column]
    ]
    tables = f"<div><h3>Weakest classes</h3>{weakest}</div>"
    if pairs:
        mixups = table(("class", "taken for", "images"), pairs)
        tables += f"<div><h3>Most frequent mistakes</h3>{mixups}</div>"
    tables = f'<div class="beside narrow">{tables}</div>'
    if len(labels) > MOST_CLASSES:
        return section("Classes", "All validation images.", tables)
    matrix = svg(confusion_matrix(counts, labels))
    return section(
        "Classes",
        "All validation images: their classes in rows, predictions in columns.",
        f'<div class="beside"><div>{matrix}</div>{tables}</div>',
    )


def mistakes(examples: Sequence[Example], labels: Sequence[str]) -> str:
    """The wrong predictions with the highest scores."""
    wrong = [each for each in examples if each.found != each.label]
    wrong.sort(key=lambda each: -each.score)
    figures = "".join(
        figure(
            [np.asarray(keras_cait.load_image(each.file))],
            f'<strong class="wrong">{escape(labels[each.found])} '
            f"{each.score:.0%}</strong><br>is {escape(labels[each.label])}"
            f"<br>{escape(each.file.name)}",
        )
        for each in wrong[:MISTAKES]
    )
    return section(
        "Most confident mistakes",
        f"{len(wrong):,} of the {len(examples):,} images in "
        "<code>validation/</code> are misclassified. "
        + (
            "Look here for wrong labels first."
            if wrong
            else "There is nothing to show."
        ),
        f'<div class="images">{figures}</div>',
    )


def looks(
    model: keras.Model, examples: Sequence[Example], labels: Sequence[str]
) -> str:
    """Where the model looks in a few images, of as many classes as possible."""
    place_in_class: dict[int, int] = {}
    places = []
    for each in examples:
        place = place_in_class.get(each.label, 0)
        place_in_class[each.label] = place + 1
        places.append((place, each.label))
    order = sorted(range(len(examples)), key=lambda i: places[i])
    chosen = [examples[i] for i in order[:LOOKS]]
    images = np.stack([keras_cait.load_image(each.file) for each in chosen])
    maps = zip(
        saliency_maps(model, images),
        relevance_maps(model, images),
        strict=True,
    )
    figures = []
    for each, image, pair in zip(chosen, images, maps, strict=True):
        kind = "" if each.found == each.label else ' class="wrong"'
        caption = (
            f"<strong{kind}>{escape(labels[each.found])} {each.score:.0%}"
            "</strong>"
        )
        if each.found != each.label:
            caption += f", is {escape(labels[each.label])}"
        shown = [image, *(overlay(image, map) for map in pair)]
        figures.append(figure(shown, caption))
    return section(
        "Where the model looks",
        "Each image, its class attention (the first block, mean over heads), "
        "and the evidence for the predicted class (relevance). Bright patches "
        "count most.",
        f'<div class="images wide">{"".join(figures)}</div>',
    )


def reliability(examples: Sequence[Example]) -> str:
    """Whether the scores can be trusted as probabilities."""
    found = predictions(
        np.stack([each.scores for each in examples]),
        np.array([each.label for each in examples]),
    )
    confidence = float(found.confidence.mean())
    accuracy = float(found.correct[:, 0].mean())
    if abs(confidence - accuracy) < 0.02:
        verdict = "On average, the scores match the accuracy."
    elif confidence < accuracy:
        verdict = "On average, the model is under-confident."
    else:
        verdict = "On average, the model is over-confident."
    return section(
        "Calibration",
        f"On the dotted line, 80% of the predictions with a score of 80% are "
        f"right. Larger dots have more images. Mean score "
        f"{confidence:.1%}, accuracy {accuracy:.1%}, expected calibration "
        f"error {calibration_error(found):.1%}, on {len(examples):,} images. "
        f"{verdict}",
        svg(calibration(found)),
    )


def exported(path: Path) -> str:
    """A table that compares the exported files with the Keras model.

    Raises:
        ValueError: the file is not a result of `python -m export verify`.
    """
    try:
        rows = [
            (
                row["name"],
                f"{row['top1']:.1%}",
                f"{row['agreement']:.1%}",
                f"{row['max_difference']:.1e}",
                f"{row['milliseconds']:.1f}",
                f"{row['megabytes']:.1f}",
            )
            for row in json.loads(path.read_text())
        ]
    except (KeyError, TypeError, ValueError):
        raise ValueError(
            f"{str(path)!r} is not a result of python -m export verify."
        ) from None
    return section(
        "Exported files",
        "Compared with the Keras model, on the encoded validation images.",
        table(
            ("file", "top-1", "agreement", "max difference", "ms", "MB"), rows
        ),
    )


def next_steps(folder: Path, recipe: Mapping[str, Any]) -> str:
    """Commands that use the run, or continue its training."""
    body = "".join(
        f"<h3>{title}</h3>\n<pre>{escape(CONTINUED.join(parts))}</pre>\n"
        for title, parts in commands(folder, recipe).items()
    )
    return section(
        "Next steps", "Run these where you started the training.", body
    )


def commands(folder: Path, recipe: Mapping[str, Any]) -> dict[str, list[str]]:
    """The parts of each command, by what it does."""
    model = shlex.quote(str(folder))
    data = f"--data {shlex.quote(recipe['data'])}"
    if recipe["data"] != "digits" and not recipe["data"].startswith("folder:"):
        data += " --data-dir DIR"
    tflite = shlex.quote(str(folder / "model.tflite"))
    site = shlex.quote(str(folder / "site"))
    served = shlex.quote(str(folder / "models" / folder.resolve().name))
    found = {
        "Classify an image, and see where the model looks": [
            f"python -m keras_cait --model {model}",
            "--attention attention.png photo.jpg",
        ],
        "Evaluate it": [f"python -m training.evaluate --model {model}", data],
        "Measure every layer": [
            f"python -m training.diagnose --model {model}",
            data,
        ],
        "Export it for phones and browsers": [
            f"python -m export litert --model {model}",
            f"--output {tflite}",
        ],
        "Make a page that classifies in the browser": [
            f"python -m export web --model {tflite}",
            f"--output {site} --serve",
        ],
        "Export it for TensorFlow Serving": [
            f"python -m export saved-model --model {model}",
            f"--output {served}",
        ],
    }
    if recipe.get("image_size") == 224 and recipe.get("weights"):
        settings = shlex.quote(str(folder / "recipe.json"))
        larger = shlex.quote(f"{folder}-384")
        found["Continue at a larger image size"] = [
            f"python -m training.train {settings} --weights {model}",
            "--image-size 384 --epochs 10 --warmup-epochs 1",
            f"--learning-rate {recipe['learning_rate'] / 4:g}",
            f"--output {larger}",
        ]
    return found


def settings(recipe: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """The recipe, and the rest of the summary."""
    record = {
        name: value
        for name, value in summary.items()
        if name not in ("confusion", "unreadable")
        and isinstance(value, str | int | float)
    }
    parts = [
        f"<details><summary>{title}</summary>"
        f"{table(('', ''), [(k, str(v)) for k, v in values.items()])}"
        "</details>"
        for title, values in (("Recipe", recipe), ("Summary", record))
    ]
    unreadable = summary.get("unreadable")
    if unreadable:
        names = ", ".join(map(escape, map(str, unreadable)))
        parts.insert(0, f"<p>Unreadable images were skipped: {names}</p>")
    return section("Settings", "", "\n".join(parts))
