"""Warm-up requests, which the server runs before a version goes live."""

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

from export.decoding import decode_picture

SIGNATURES = {
    "serving_default": "image_bytes",
    "pixels": "images",
    "embedding": "image_bytes",
    "attention": "image_bytes",
}


def write_warmup(path, name, size, batch_sizes):
    """Writes one request for each signature and batch size.

    Args:
        path: path of the version's folder; the file is its
            `assets.extra/tf_serving_warmup_requests`.
        name: str. Name of the model.
        size: pair of ints, the `(height, width)` of the model's images.
        batch_sizes: list of ints.
    """
    encoded = example_picture()
    pixels = tf.cast(decode_picture(encoded, size), tf.uint8)
    file = path / "assets.extra" / "tf_serving_warmup_requests"
    with tf.io.TFRecordWriter(str(file)) as writer:
        for batch_size in batch_sizes:
            for signature, key in SIGNATURES.items():
                one = pixels if key == "images" else encoded
                request = predict_request(
                    name, signature, key, tf.stack(batch_size * [one])
                )
                log = PredictionLog(predict_log=PredictLog(request=request))
                writer.write(log.SerializeToString())
            request = classification_request(
                name, batch_size * [encoded.numpy()]
            )
            log = PredictionLog(classify_log=ClassifyLog(request=request))
            writer.write(log.SerializeToString())


def example_picture(seed=0):
    """A JPEG of 500 x 375 pixels, as smooth as a photo: a string tensor."""
    colors = np.random.default_rng(seed).uniform(0, 255, (9, 12, 3))
    picture = tf.image.resize(colors, (375, 500), "bicubic")
    return tf.io.encode_jpeg(tf.saturate_cast(picture, tf.uint8))


def predict_request(name, signature, key, batch):
    request = PredictRequest(
        model_spec=ModelSpec(name=name, signature_name=signature)
    )
    request.inputs[key].CopyFrom(tf.make_tensor_proto(batch))
    return request


def classification_request(name, pictures):
    request = ClassificationRequest(
        model_spec=ModelSpec(name=name, signature_name="classify")
    )
    for encoded in pictures:
        example = request.input.example_list.examples.add()
        feature = example.features.feature["image/encoded"]
        feature.bytes_list.value.append(encoded)
    return request
