"""Runs all signatures of a SavedModel, without Keras and keras_cait.

A separate program, started by `export/check_saved_model.py`:

    python export/run_signatures.py models/cait_s24/1 outputs.npz IMAGE ...

It runs each signature on the first 1, 3 and 8 images, checks names, dtypes and
shapes against `manifest.json`, and replays the warm-up requests. Outputs are
written as `signature/output/batch size`; the random input of the signature
`pixels` is written as `pixels`.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

BATCH_SIZES = (1, 3, 8)


def main(version: str, output: str, *images: str) -> None:
    """Runs all signatures and writes their outputs."""
    folder = Path(version)
    signatures = tf.saved_model.load(version).signatures
    manifest = json.loads((folder / "manifest.json").read_text())
    height, width = manifest["image_size"]
    encoded = [Path(image).read_bytes() for image in images]
    pixels = np.random.default_rng(0).integers(
        0, 256, (max(BATCH_SIZES), height, width, 3), "uint8"
    )
    inputs = {
        "image_bytes": encoded,
        "images": pixels,
        "inputs": [example(image) for image in encoded],
    }
    arrays: dict[str, Any] = {"pixels": pixels}
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
                arrays[f"{name}/{output_name}/{size}"] = value
    for name, batch in warmup_requests(folder):
        signatures[name](**batch)
    np.savez(output, **arrays)


def example(encoded: bytes) -> bytes:
    """An encoded image as a serialized `tf.Example`."""
    value = tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded]))
    features = tf.train.Features(feature={"image/encoded": value})
    return tf.train.Example(features=features).SerializeToString()


def check(
    signature: str,
    batch_size: int,
    outputs: dict[str, tf.Tensor],
    described: dict[str, Any],
) -> None:
    """Raises ValueError if outputs differ from the manifest's description."""
    found = {
        name: {"dtype": value.dtype.name, "shape": value.shape.as_list()}
        for name, value in outputs.items()
    }
    expected = {
        name: {**tensor, "shape": [batch_size, *tensor["shape"][1:]]}
        for name, tensor in described.items()
    }
    if found != expected:
        raise ValueError(
            f"Signature {signature!r} returns {found}, but manifest.json says "
            f"{expected}."
        )


def warmup_requests(
    folder: Path,
) -> Iterator[tuple[str, dict[str, tf.Tensor]]]:
    """Signature and inputs of each warm-up request."""
    path = folder / "assets.extra" / "tf_serving_warmup_requests"
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
