"""Explanations: how much of each map lies on the digit that it is about.

A small CaiT has learned digits that are moved about on a black canvas, one per
image. Alone on the canvas, a map should lie on the digit; with two digits, the
map of a class on the digit of this class.
"""

from pathlib import Path
from typing import Annotated, NamedTuple

import keras
import matplotlib
import numpy as np
from cyclopts import Parameter

matplotlib.use("Agg")

from matplotlib import pyplot as plt

import keras_cait
from benchmarks.command import Output, benchmark_app, run
from benchmarks.results import Rows, show, write
from keras_cait.attention_maps import overlay
from keras_cait.datasets import open_dataset

WEIGHTS = Path(__file__).parent / "moved_digits.safetensors"
DIGIT, CANVAS, PATCH = 28, 84, 14
EPOCHS, BATCH, PEAK = 12, 100, 3e-3
COUNT = 100  # images of one digit, and of two


class Canvases(NamedTuple):
    """Digits on black canvases.

    Attributes:
        images: uint8 array `(count, 84, 84, 3)`.
        labels: int array `(count, digits)`.
        boxes: bool array `(count, digits, 84, 84)`. The 28 x 28 pixels of each
            digit.
    """

    images: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray


def model() -> keras_cait.CaiT:
    """The CaiT of `moved_digits.safetensors`, but with random weights."""
    return keras_cait.CaiT(
        32,
        depth=2,
        num_heads=4,
        patch_size=PATCH,
        input_shape=(CANVAS, CANVAS, 3),
        classes=10,
    )


def canvases(split: str, digits: int, count: int, seed: int) -> Canvases:
    """Puts random digits of a split on canvases: one, or two.

    They are moved by whole patches, which a small model learns sooner. Two
    digits have different classes; one is in the left half, the other in the
    right one.
    """
    dataset = open_dataset("digits", split)
    random = np.random.default_rng(seed)
    places = range(0, CANVAS - DIGIT + 1, PATCH)
    made = Canvases(
        np.zeros((count, CANVAS, CANVAS, 3), "uint8"),
        np.zeros((count, digits), "int64"),
        np.zeros((count, digits, CANVAS, CANVAS), bool),
    )
    for image, labels, boxes in zip(*made, strict=True):
        labels[:] = random.permutation(10)[:digits]
        lefts = random.choice(places), random.choice(places[3:])
        if digits == 2:
            lefts = random.choice(places[:2]), lefts[1]
        for label, box, left in zip(labels, boxes, lefts, strict=False):
            of_a_class = len(dataset) // 10
            index = label * of_a_class + random.integers(of_a_class)
            top = random.choice(places)
            place = (slice(top, top + DIGIT), slice(left, left + DIGIT))
            image[place] = dataset[int(index)][0]
            box[place] = True
    return made


def on_digits(maps: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """The share of each map's positive values that lies on each digit.

    Args:
        maps: array `(count, rows, columns)`.
        boxes: bool array `(count, digits, 84, 84)`.

    Returns:
        Array `(count, digits)`.
    """
    positive = np.maximum(maps, 0)
    side = CANVAS // maps.shape[-1]
    pixels = positive.repeat(side, axis=1).repeat(side, axis=2)
    pixels = pixels / np.maximum(pixels.sum((1, 2), keepdims=True), 1e-9)
    return (pixels[:, None] * boxes).sum((2, 3))


class Moved(keras.utils.PyDataset):
    """Batches of training digits, moved anew in each epoch."""

    def __init__(self, batches: int):
        super().__init__()
        self.batches = batches
        self.epoch = 0

    def __len__(self) -> int:
        return self.batches

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        seed = self.epoch * self.batches + index
        moved = canvases("train", 1, BATCH, seed)
        return moved.images, moved.labels

    def on_epoch_end(self) -> None:
        self.epoch += 1


def learn(validation: Canvases) -> keras_cait.CaiT:
    """Trains the model and writes its weights."""
    keras.utils.set_random_seed(0)
    learner = model()
    batches = Moved(40)
    steps = EPOCHS * len(batches)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps, warmup_target=PEAK, warmup_steps=steps // 10
    )
    learner.compile(
        keras.optimizers.AdamW(schedule, weight_decay=0.01),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
        jit_compile=False,  # too few steps to repay the compilation
    )
    learner.fit(
        batches,
        epochs=EPOCHS,
        validation_data=(validation.images, validation.labels),
        validation_freq=EPOCHS,
        verbose=2,
    )
    keras_cait.save_weights(learner, WEIGHTS)
    return learner


def measure(learner: keras_cait.CaiT, one: Canvases, two: Canvases) -> Rows:
    """The share of the maps on the digits, and by chance: in percent."""
    first, second = two.labels.T
    kinds = {
        "class attention, first block": lambda images, labels: (
            keras_cait.class_attention_maps(learner, images)[:, 0].mean(1)
        ),
        "`saliency_maps`": lambda images, labels: keras_cait.saliency_maps(
            learner, images
        ),
        "`relevance_maps`": lambda images, labels: keras_cait.relevance_maps(
            learner, images, labels
        ),
        "`occlusion_maps`": lambda images, labels: keras_cait.occlusion_maps(
            learner, images, labels, batch_size=256, verbose=0
        ),
        "chance": lambda images, labels: np.ones((len(images), 1, 1)),
    }
    found = {}
    for name, maps in kinds.items():
        alone = on_digits(maps(one.images, one.labels[:, 0]), one.boxes)
        shares = np.concatenate(
            [
                on_digits(maps(two.images, first), two.boxes),
                on_digits(maps(two.images, second), two.boxes)[:, ::-1],
            ]
        )  # of the digit of the class, and of the other one
        own = shares[:, 0] / np.maximum(shares.sum(1), 1e-9)
        found[name] = {
            "on the digit / %": 100 * float(alone.mean()),
            "of two, on the given class / %": 100 * float(own.mean()),
            "mostly on the given class / %": 100 * float((own > 0.5).mean()),
        }
    del found["chance"]["mostly on the given class / %"]
    return found


def draw(learner: keras_cait.CaiT, two: Canvases, path: Path) -> None:
    """Draws two digits with the maps of both classes."""
    images, (left, right) = two.images, two.labels.T
    columns = {
        "image": list(images),
        "saliency": keras_cait.saliency_maps(learner, images),
    }
    for name, maps in (
        ("relevance", keras_cait.relevance_maps),
        ("occlusion", lambda *of: keras_cait.occlusion_maps(*of, verbose=0)),
    ):
        columns |= {
            f"{name}, left": maps(learner, images, left),
            f"{name}, right": maps(learner, images, right),
        }
    figure, grid = plt.subplots(
        len(images), 6, figsize=(9, 1.65 * len(images)), layout="constrained"
    )
    for axes, (name, maps) in zip(grid.T, columns.items(), strict=True):
        for axis, image, labels, values in zip(
            axes, images, two.labels, maps, strict=True
        ):
            axis.imshow(
                image
                if name == "image"
                else overlay(image, np.maximum(values, 0))
            )
            kind, _, side = name.partition(", ")
            of = f" of {labels[int(side == 'right')]}" if side else ""
            axis.set_title(kind + of, fontsize=9)
            axis.set_axis_off()
    figure.savefig(path, dpi=110)


app = benchmark_app("explanations", __doc__)


@app.default
def main(
    *,
    train: Annotated[bool, Parameter(negative=())] = False,
    output: Output = None,
    figure: Path | None = None,
) -> None:
    """Measures the maps on validation digits.

    Args:
        train: Train the model first. It takes some minutes.
        figure: Image to draw.
    """
    one = canvases("validation", 1, COUNT, seed=1)
    two = canvases("validation", 2, COUNT, seed=2)
    learner = learn(one) if train else model()
    if not train:
        keras_cait.load_weights(learner, WEIGHTS)
    rows = measure(learner, one, two)
    title = f"Maps of {len(one.images)} validation images each"
    show(title, rows)
    write({title: rows}, output)
    if figure:
        few = Canvases(*(array[:4] for array in two))
        draw(learner, few, figure)


if __name__ == "__main__":
    run(app)
