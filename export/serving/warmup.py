"""Warm-up requests, which the server runs before a version goes live."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis.classification_pb2 import ClassificationRequest
from tensorflow_serving.apis.model_pb2 import ModelSpec
from tensorflow_serving.apis.predict_pb2 import PredictRequest
from tensorflow_serving.apis.prediction_log_pb2 import (
    ClassifyLog,
    PredictionLog,
    PredictLog,
)

from export.options import SERVED_SIGNATURES, ServedSignature
from keras_cait.preprocessing import load_image, resize_and_crop

# The input of each signature that is called with Predict.
INPUTS = {
    "serving_default": "image_bytes",
    "pixels": "images",
    "embedding": "image_bytes",
    "attention": "image_bytes",
}


def write_warmup(
    version: Path,
    name: str,
    image_size: tuple[int, int],
    batch_sizes: Sequence[int],
    signatures: Sequence[ServedSignature] = SERVED_SIGNATURES,
) -> None:
    """Writes one request for each signature and batch size.

    Args:
        version: folder of the version. The requests are written to its
            `assets.extra/tf_serving_warmup_requests`.
        name: name of the served model.
        image_size: height and width of the model's images in pixels.
        batch_sizes: numbers of images per request.
        signatures: those of the version.
    """
    encoded = example_image()
    pixels = resize_and_crop(load_image(encoded), image_size)
    examples = {
        "image_bytes": tf.constant(encoded),
        "images": tf.constant(pixels),
    }
    path = version / "assets.extra" / "tf_serving_warmup_requests"
    with tf.io.TFRecordWriter(str(path)) as writer:
        for batch_size in batch_sizes:
            for signature, key in INPUTS.items():
                if signature not in signatures:
                    continue
                batch = tf.stack(batch_size * [examples[key]])
                request = predict_request(name, signature, key, batch)
                log = PredictionLog(predict_log=PredictLog(request=request))
                writer.write(log.SerializeToString())
            if "classify" in signatures:
                request = classification_request(name, batch_size * [encoded])
                log = PredictionLog(classify_log=ClassifyLog(request=request))
                writer.write(log.SerializeToString())


def example_image(seed: int = 0) -> bytes:
    """A random 500 x 375 JPEG as smooth as a photo."""
    colors = np.random.default_rng(seed).uniform(0, 255, (9, 12, 3))
    image = tf.image.resize(colors, (375, 500), "bicubic")
    encoded = tf.io.encode_jpeg(tf.saturate_cast(image, tf.uint8))
    return bytes(encoded.numpy())


def predict_request(
    name: str, signature: str, key: str, batch: tf.Tensor
) -> PredictRequest:
    """A Predict request for one signature."""
    request = PredictRequest(
        model_spec=ModelSpec(name=name, signature_name=signature)
    )
    request.inputs[key].CopyFrom(tf.make_tensor_proto(batch))
    return request


def classification_request(
    name: str, images: Sequence[bytes]
) -> ClassificationRequest:
    """A Classify request for encoded images."""
    request = ClassificationRequest(
        model_spec=ModelSpec(name=name, signature_name="classify")
    )
    for encoded in images:
        example = request.input.example_list.examples.add()
        feature = example.features.feature["image/encoded"]
        feature.bytes_list.value.append(encoded)
    return request
