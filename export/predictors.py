"""Models of any kind as functions of encoded images."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

import keras_cait
from export.exportable import image_size
from keras_cait.litert import LiteRTModel
from keras_cait.loading import find_labels
from keras_cait.preprocessing import load_image, resize_and_crop

# A function of encoded images to probabilities `(images, classes)`.
Predict = Callable[[Sequence[bytes]], np.ndarray]

# A SavedModel only returns its top classes; the others get this score.
UNKNOWN = -1.0


def keras_predictor(model: keras_cait.CaiT) -> Predict:
    """The Keras model as a function of encoded images."""
    predict = tf.function(
        lambda images: model(images, training=False),
        input_signature=[tf.TensorSpec(model.input.shape, tf.float32)],
    )
    size = image_size(model)
    return lambda encoded: predict(to_pixels(encoded, size)).numpy()


def load_predictor(path: Path, labels: Sequence[str]) -> Predict:
    """An exported model as a function of encoded images."""
    if path.suffix == ".tflite":
        return litert_predictor(path, labels)
    return saved_model_predictor(path, labels)


def saved_model_predictor(path: Path, labels: Sequence[str]) -> Predict:
    """Calls `serving_default`, and orders its scores by class."""
    if find_labels(path) != list(labels):
        raise ValueError(
            f"{str(path)!r} has other labels than the model. Give the labels "
            "it was exported with: --labels FILE."
        )
    signature = tf.saved_model.load(str(path)).signatures["serving_default"]
    index = {label.encode(): i for i, label in enumerate(labels)}

    def predict(encoded):
        outputs = signature(image_bytes=tf.constant(encoded))
        classes = np.vectorize(index.__getitem__)(outputs["classes"].numpy())
        scores = np.full((len(encoded), len(labels)), UNKNOWN, np.float32)
        np.put_along_axis(scores, classes, outputs["scores"].numpy(), axis=1)
        return scores

    return predict


def litert_predictor(path: str | Path, labels: Sequence[str]) -> Predict:
    """Decodes images, and runs a `.tflite` file on them."""
    model = LiteRTModel(path)
    if model.classes != len(labels):
        raise ValueError(
            f"{str(path)!r} has {model.classes} classes, but the model has "
            f"{len(labels)}. Give the model it was made from."
        )
    return lambda encoded: model(to_pixels(encoded, model.image_size))


def to_pixels(
    encoded: Sequence[bytes], image_size: tuple[int, int]
) -> np.ndarray:
    """Encoded images as a float32 batch `(images, height, width, 3)`."""
    images = [resize_and_crop(load_image(one), image_size) for one in encoded]
    return np.stack(images).astype("float32")
