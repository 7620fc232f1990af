"""Progress, `history.csv` and TensorBoard."""

import sys
import time

import keras
import numpy as np
import tensorflow as tf

import keras_cait

SHOWN = 8  # images


class Pictures(keras.callbacks.Callback):
    """Writes pictures of a run to TensorBoard after every evaluation.

    Histograms of every LayerScale's gammas (of the averaged weights), the last
    training images of the epoch as the model saw them, and where the class
    token of the averaged model looks on a few held-out images.

    Args:
        model: `CaiT` of the averaged weights.
        held_out: `Examples` whose images are ready for the model.
        output: path of the run's folder.

    Attributes:
        seen: images `(batch, height, width, 3)` that the model was trained on;
            the training loop puts them here.
    """

    def __init__(self, model, held_out, output):
        super().__init__()
        self.average = model
        self.held_out = held_out
        self.folder = output / "tensorboard" / "train"
        self.seen = None

    def on_train_begin(self, logs=None):
        self.writer = tf.summary.create_file_writer(str(self.folder))

    def on_epoch_end(self, epoch, logs=None):
        if "val_accuracy" not in logs:
            return
        with self.writer.as_default(epoch):
            for weight in self.average.weights:
                layer, _, name = weight.path.rpartition("/")
                if name == "gamma" and "layer_scale" in layer:
                    gammas = keras.ops.convert_to_numpy(weight)
                    tf.summary.histogram(f"gammas/{layer}", gammas)
            images = as_pixels(self.seen[:SHOWN])
            tf.summary.image("training images", images, max_outputs=SHOWN)
            images = self.held_out_images()
            maps = keras_cait.saliency_maps(self.average, images)
            overlaid = np.stack(
                [
                    keras_cait.attention_maps.overlay(image, map)
                    for image, map in zip(as_pixels(images), maps, strict=True)
                ]
            )
            tf.summary.image("class attention", overlaid, max_outputs=SHOWN)
        self.writer.flush()

    def held_out_images(self):
        stride = max(1, self.held_out.count // SHOWN)
        indices = range(0, self.held_out.count, stride)[:SHOWN]
        return np.stack([self.held_out.read(index)[0] for index in indices])


def as_pixels(images):
    """Images in 0...255, noise of random erasing cut off, as uint8."""
    return np.clip(np.round(images), 0, 255).astype("uint8")


class Meter:
    """What the progress bar shows: metrics, speed, and the wait for data."""

    def __init__(self, recipe, trainer, steps):
        self.recipe = recipe
        self.trainer = trainer
        self.last_step = recipe.epochs * steps
        self.first_step = trainer.step
        self.start = self.shown = time.perf_counter()
        self.waited = 0.0
        self.last = {}

    def waiting(self):
        """A context in which time counts as waiting for data."""
        return self

    def __enter__(self):
        self.since = time.perf_counter()

    def __exit__(self, *error):
        self.waited += time.perf_counter() - self.since

    def logs(self, step, now=False):
        """The present figures, new about once a second or if `now`.

        Asking for the metrics waits for the device, so it is rare.
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
    """Writes `history.csv`; NA where an epoch was not evaluated."""

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        # Else they would be those of the first epoch that is written.
        self.keys = [
            *("loss", "accuracy", "val_accuracy", "val_top5"),
            *("val_raw_accuracy", "gradient_norm", "learning_rate"),
            *("images_per_second", "data_wait"),
        ]


def callback_list(recipe, trainer, output, chief, steps, pictures):
    """Keras' own progress bar, CSV and TensorBoard, of the chief."""
    trainer.model.compile(trainer.optimizer)  # callbacks look for it
    callbacks = [
        History(output / "history.csv", append=True),
        keras.callbacks.TensorBoard(output / "tensorboard"),
        pictures,
    ]
    if not chief:
        callbacks = []
    return keras.callbacks.CallbackList(
        callbacks,
        add_progbar=chief,
        model=trainer.model,
        epochs=recipe.epochs,
        steps=steps,
        verbose=(1 if sys.stdout.isatty() else 2) if chief else 0,
    )
