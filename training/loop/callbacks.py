"""Progress bar, `history.csv` and TensorBoard."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_cait.attention_maps import overlay, saliency_maps
from training.data.datasets import Examples
from training.loop.trainer import Trainer
from training.recipes import Recipe

SHOWN = 8  # images


def make_callbacks(
    recipe: Recipe,
    trainer: Trainer,
    output: Path,
    steps_per_epoch: int,
    images: "ImageSummaries",
    is_chief: bool,
) -> keras.callbacks.CallbackList:
    """Keras' progress bar, CSV and TensorBoard, only for the chief."""
    trainer.model.compile(trainer.optimizer)  # callbacks look for it
    callbacks = [
        History(output / "history.csv", append=True),
        keras.callbacks.TensorBoard(output / "tensorboard"),
        images,
    ]
    return keras.callbacks.CallbackList(
        callbacks if is_chief else [],
        add_progbar=is_chief,
        model=trainer.model,
        epochs=recipe.epochs,
        steps=steps_per_epoch,
        verbose=(1 if sys.stdout.isatty() else 2) if is_chief else 0,
    )


class Meter:
    """The values on the progress bar: metrics, speed, and time without data.

    Args:
        recipe: the recipe.
        trainer: the trainer, before the first step that is measured.
        steps_per_epoch: optimizer steps per epoch.
    """

    def __init__(self, recipe: Recipe, trainer: Trainer, steps_per_epoch: int):
        self.recipe = recipe
        self.trainer = trainer
        self.last_step = recipe.epochs * steps_per_epoch
        self.first_step = trainer.step
        self.start = self.shown = time.perf_counter()
        self.waited = 0.0
        self.last: dict[str, float] = {}

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time of its block as waiting for data."""
        start = time.perf_counter()
        yield
        self.waited += time.perf_counter() - start

    def logs(self, step: int, now: bool = False) -> dict[str, float]:
        """The current values, updated about once per second or if `now`.

        Reading the metrics waits for the device, so it is rare.

        Args:
            step: optimizer steps done.
            now: update them in any case.
        """
        time_now = time.perf_counter()
        if now or time_now - self.shown > 1.0:
            values = self.trainer.means()
            self.shown = time.perf_counter()
            elapsed = self.shown - self.start
            steps_per_second = (step - self.first_step) / elapsed
            rate = self.trainer.optimizer.learning_rate
            self.last = values | {
                "learning_rate": float(keras.ops.convert_to_numpy(rate)),
                "images_per_second": (
                    steps_per_second * self.recipe.global_batch_size
                ),
                "data_wait": self.waited / elapsed,
                "hours_left": (
                    (self.last_step - step) / steps_per_second / 3600
                ),
            }
        return dict(self.last)


class History(keras.callbacks.CSVLogger):
    """Writes `history.csv`, with NA where an epoch was not evaluated."""

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        super().on_train_begin(logs)
        # Otherwise they would be those of the first epoch that is written.
        self.keys = [
            "loss",
            "accuracy",
            "val_accuracy",
            "val_top5",
            "val_raw_accuracy",
            "gradient_norm",
            "learning_rate",
            "images_per_second",
            "data_wait",
        ]


class ImageSummaries(keras.callbacks.Callback):
    """Writes images and histograms to TensorBoard after every evaluation.

    Histograms of every LayerScale's gammas (of the EMA weights), the last
    training images of the epoch as the model saw them, and the class attention
    of the EMA model on a few validation images.

    Args:
        ema_model: `CaiT` with the EMA weights.
        validation: `Examples` whose images are ready for the model.
        output: folder of the run.

    Attributes:
        training_images: the last images that the model was trained on, set by
            the training loop.
    """

    def __init__(
        self, ema_model: keras.Model, validation: Examples, output: Path
    ):
        super().__init__()
        self.ema_model = ema_model
        self.validation = validation
        self.folder = output / "tensorboard" / "train"
        self.training_images: Any = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self.writer = tf.summary.create_file_writer(str(self.folder))

    def on_epoch_end(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        if "val_accuracy" not in (logs or {}):
            return
        with self.writer.as_default(epoch):
            for weight in self.ema_model.weights:
                layer, _, name = weight.path.rpartition("/")
                if name == "gamma" and "layer_scale" in layer:
                    gammas = keras.ops.convert_to_numpy(weight)
                    tf.summary.histogram(f"gammas/{layer}", gammas)
            images = as_uint8(self.training_images[:SHOWN])
            tf.summary.image("training images", images, max_outputs=SHOWN)
            images = self.validation_images()
            maps = saliency_maps(self.ema_model, images)
            overlaid = [
                overlay(image, map)
                for image, map in zip(as_uint8(images), maps, strict=True)
            ]
            tf.summary.image(
                "class attention", np.stack(overlaid), max_outputs=SHOWN
            )
        self.writer.flush()

    def validation_images(self) -> np.ndarray:
        count = self.validation.count
        numbers = range(0, count, max(1, count // SHOWN))[:SHOWN]
        return np.stack([self.validation.read(i)[0] for i in numbers])


def as_uint8(images: Any) -> np.ndarray:
    """Rounds images to 0...255; clips the noise of random erasing."""
    return np.clip(np.round(images), 0, 255).astype("uint8")
