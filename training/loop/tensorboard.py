"""What a run writes for TensorBoard."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorboard.compat.proto.event_pb2 import Event

from keras_cait.attention_maps import overlay, saliency_maps
from keras_cait.files import atomically
from training.data.datasets import Examples
from training.figures import confusion_matrix, gallery, pixels
from training.recipe import Recipe

SHOWN = 8  # images
# TensorBoard shows as many of each curve, and of each image.
POINTS, IMAGES = 1000, 10


class TensorBoard:
    """Writes the runs `train`, `validation` and `validation_raw`.

    The horizontal axis of everything is the number of optimizer steps. The
    first run is that of the training images, the second that of the EMA weights
    on the validation images, the third that of the raw weights.

    Args:
        folder: folder for the three. What lies after `step` is dropped.
        step: optimizer steps done.
        steps: optimizer steps of the whole run.
    """

    def __init__(self, folder: Path, step: int, steps: int):
        self.steps = steps
        for path in folder.glob("*/*.tfevents.*"):
            drop_after(step, path)
        self.train, self.validation, self.raw = (
            tf.summary.create_file_writer(str(folder / name))
            for name in ("train", "validation", "validation_raw")
        )

    def is_point(self, step: int) -> bool:
        """Whether the curves over steps have a point here."""
        return step % -(-self.steps // POINTS) == 0

    def shows_images(self, step: int, since: int) -> bool:
        """Whether an evaluation at a step is one of those with images.

        Args:
            step: optimizer steps done.
            since: steps since the evaluation before.
        """
        due = IMAGES * step // self.steps
        return due > IMAGES * (step - since) // self.steps

    def recipe(self, recipe: Recipe) -> None:
        """Shows the recipe as a table."""
        rows = "".join(
            f"| {name} | {value} |\n"
            for name, value in dataclasses.asdict(recipe).items()
        )
        with self.train.as_default(0):
            text = f"| field | value |\n|---|---|\n{rows}"
            # A path may be in another encoding.
            tf.summary.text("recipe", text.encode(errors="backslashreplace"))

    def add_step(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a point to the curves over steps.

        Args:
            step: optimizer steps done.
            values: means since the last point; what is not a number is left
                out.
        """
        groups = {
            "loss": "loss/step",
            "accuracy": "accuracy/step",
            "learning_rate": "optimizer/learning_rate",
            "gradient_norm": "optimizer/gradient_norm",
            "images_per_second": "speed/images_per_second",
            "data_wait": "speed/data_wait",
        }
        with self.train.as_default(step):
            for name, tag in groups.items():
                if np.isfinite(values[name]):
                    tf.summary.scalar(tag, values[name])

    def add_epoch(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a point to the curves over epochs, one in each run.

        Args:
            step: optimizer steps done.
            values: means of the epoch, and the results of its evaluation if
                there was one.
        """
        for writer, prefix in (
            (self.train, ""),
            (self.validation, "val_"),
            (self.raw, "val_raw_"),
        ):
            with writer.as_default(step):
                for name, tag in (
                    ("loss", "loss/epoch"),
                    ("accuracy", "accuracy/epoch"),
                    ("top5", "accuracy/epoch_top5"),
                ):
                    value = values.get(prefix + name, np.nan)
                    if np.isfinite(value):
                        tf.summary.scalar(tag, value)
            writer.flush()

    def add_gammas(self, step: int, ema_model: keras.Model) -> None:
        """Histograms of every LayerScale's gammas."""
        with self.train.as_default(step):
            for weight in ema_model.weights:
                layer, _, name = weight.path.rpartition("/")
                if name == "gamma" and "layer_scale" in layer:
                    gammas = keras.ops.convert_to_numpy(weight)
                    tf.summary.histogram(f"gammas/{layer}", gammas)

    def add_training_images(
        self, step: int, images: Any, targets: Any, labels: Sequence[str]
    ) -> None:
        """Training images as the model sees them, and their targets.

        Args:
            step: optimizer steps done.
            images: float array `(batch, height, width, 3)` in 0...255.
            targets: array `(batch, classes)`.
            labels: names of the classes.
        """
        titles = [
            "\n".join(
                f"{target[label]:.0%} {labels[label]}"
                for label in np.argsort(-target)[:2]
                if target[label] > 2 * (1 - target.max()) / len(labels)
            )
            for target in np.array(targets[:SHOWN])
        ]
        shown = gallery([as_uint8(images[:SHOWN])], titles)
        with self.train.as_default(step):
            tf.summary.image("training images", pixels(shown)[None])

    def add_predictions(
        self, step: int, ema_model: keras.Model, validation: Examples
    ) -> None:
        """Predictions for a few validation images, and their class attention.

        Args:
            step: optimizer steps done.
            ema_model: `CaiT` with the EMA weights; it returns logits.
            validation: validation examples, ready for the model.
        """
        count = validation.count
        numbers = range(0, count, max(1, count // SHOWN))[:SHOWN]
        examples = [validation.read(number) for number in numbers]
        images = np.stack([image for image, _ in examples])
        scores = keras.ops.softmax(ema_model(images, training=False))
        names, titles = validation.class_names, []
        for (_, label), row in zip(examples, scores, strict=True):
            found = int(np.argmax(row))
            said = f"{names[found]} {float(row[found]):.0%}"
            if found == int(label):
                titles.append(f"✓ {said}")
            else:
                titles.append(f"✗ {said}\nis {names[int(label)]}")
        maps = saliency_maps(ema_model, images)
        shown = as_uint8(images)
        looks = np.stack(
            [overlay(*pair) for pair in zip(shown, maps, strict=True)]
        )
        figure = gallery([shown, looks], titles)
        with self.validation.as_default(step):
            tf.summary.image("predictions and attention", pixels(figure)[None])

    def add_confusion(
        self, step: int, counts: np.ndarray, labels: Sequence[str]
    ) -> None:
        """The confusion matrix of the last evaluation."""
        figure = confusion_matrix(counts, labels)
        with self.validation.as_default(step):
            tf.summary.image("confusion matrix", pixels(figure)[None])


def drop_after(step: int, path: Path) -> None:
    """Drops from an event file what lies after a step, which is run again.

    TensorBoard would draw both.
    """
    kept, dropped = [], False
    try:
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            if Event.FromString(record).step <= step:
                kept.append(record)
            else:
                dropped = True
    except tf.errors.DataLossError:  # cut short
        dropped = True
    if dropped:
        with (
            atomically(path) as unfinished,
            tf.io.TFRecordWriter(str(unfinished)) as writer,
        ):
            for record in kept:
                writer.write(record)


def as_uint8(images: Any) -> np.ndarray:
    """Rounds images to 0...255; clips the noise of random erasing."""
    return np.clip(np.round(images), 0, 255).astype("uint8")
