"""Runs all signatures of a SavedModel, with TensorFlow alone.

A program of its own, as which `export/check_saved_model.py` starts it:

    python export/run_signatures.py models/cait_s24/1 answers.npz PICTURE ...

It asks each signature for the first 1, 3 and 8 pictures, checks names, data
types and shapes against `manifest.json`, runs the warm-up requests, and writes
the answers as `signature/output/batch size`, and the `pixels` that it made up
for the signature of that name.
"""

import json
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

BATCH_SIZES = (1, 3, 8)


def main(version, output, *pictures):
    version = Path(version)
    signatures = tf.saved_model.load(str(version)).signatures
    manifest = json.loads((version / "manifest.json").read_text())
    height, width = manifest["image_size"]
    encoded = [Path(picture).read_bytes() for picture in pictures]
    pixels = np.random.default_rng(0).integers(
        0, 256, (max(BATCH_SIZES), height, width, 3), "uint8"
    )
    inputs = {
        "image_bytes": encoded,
        "images": pixels,
        "inputs": [example(one) for one in encoded],
    }
    answers = {"pixels": pixels}
    for name, described in manifest["signatures"].items():
        (key,) = described["inputs"]
        for size in BATCH_SIZES:
            batch = tf.constant(inputs[key][:size])
            outputs = signatures[name](**{key: batch})
            check(name, size, outputs, described["outputs"])
            for output_name, value in outputs.items():
                value = value.numpy()
                if value.dtype == object:  # strings
                    value = value.astype("S")
                answers[f"{name}/{output_name}/{size}"] = value
    for name, batch in warmup_requests(version):
        signatures[name](**batch)
    np.savez(output, **answers)


def example(encoded):
    """A picture as a serialized `tf.Example`."""
    value = tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded]))
    features = tf.train.Features(feature={"image/encoded": value})
    return tf.train.Example(features=features).SerializeToString()


def check(signature, size, outputs, described):
    """Raises ValueError where outputs are not as the manifest says."""
    found = {
        name: {"dtype": value.dtype.name, "shape": value.shape.as_list()}
        for name, value in outputs.items()
    }
    expected = {
        name: {**tensor, "shape": [size, *tensor["shape"][1:]]}
        for name, tensor in described.items()
    }
    if found != expected:
        raise ValueError(
            f"{signature} answers {found}. manifest.json says {expected}."
        )


def warmup_requests(version):
    """The signature and the inputs of each warm-up request."""
    path = version / "assets.extra" / "tf_serving_warmup_requests"
    for record in tf.data.TFRecordDataset(str(path)):
        log = PredictionLog.FromString(record.numpy())
        if log.HasField("classify_log"):
            request = log.classify_log.request
            examples = request.input.example_list.examples
            batch = {"inputs": [one.SerializeToString() for one in examples]}
        else:
            request = log.predict_log.request
            batch = {
                key: tf.make_ndarray(value)
                for key, value in request.inputs.items()
            }
        yield (
            request.model_spec.signature_name,
            {key: tf.constant(value) for key, value in batch.items()},
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
