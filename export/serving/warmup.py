"""Warm-up requests, which the server runs before a version goes live."""

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
    # A smooth picture compresses to the size of a photo.
    ramp = tf.linspace(0.0, 255.0, 500)[None, :, None]
    rows = tf.linspace(0.0, 1.0, 375)[:, None, None]
    picture = tf.cast(ramp * rows * [1.0, 0.5, 0.25], tf.uint8)
    encoded = tf.io.encode_jpeg(picture)
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
