"""What TensorBoard shows besides curves: gammas, training images, attention."""

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
