"""Engines other than TensorFlow run what the library and the exports write."""

import json
import sys

import numpy as np
import onnxruntime
import openvino
import pytest
import tensorflow as tf

from export.predictors import keras_predictor, load_predictor
from export.serving.model_folder import write_version
from keras_cait.litert import open_interpreter

LABELS = [f"class {i}" for i in range(5)]
# Some processors compute in bfloat16 otherwise.
FLOAT32 = {"INFERENCE_PRECISION_HINT": "f32"}


def run_onnx(path, images):
    session = onnxruntime.InferenceSession(path)
    (given,) = session.get_inputs()
    return session.run(None, {given.name: images})[0]


def run_openvino(path, images):
    model = openvino.Core().compile_model(path, "CPU", FLOAT32)
    return model(images)[0]


def run_litert(path, images):
    runner = open_interpreter(path).get_signature_runner()
    (given,) = runner.get_input_details()
    (found,) = runner(**{given: images}).values()
    return found


@pytest.mark.parametrize(
    ("name", "run"),
    [
        ("model.onnx", run_onnx),
        pytest.param(
            *("model.xml", run_openvino),
            marks=pytest.mark.xfail(
                sys.version_info >= (3, 13),
                raises=NameError,
                reason="OpenVINO 2026.4 deletes a name that it never bound.",
            ),
        ),
        ("model.tflite", run_litert),
    ],
)
def test_models_export_themselves(name, run, small_model, images, tmp_path):
    formats = {"onnx": "onnx", "xml": "openvino", "tflite": "litert"}
    path = tmp_path / name
    format = formats[name.partition(".")[2]]
    images = images.astype("float32")
    # Keras exports to ONNX only what has been called.
    expected = small_model.predict(images, verbose=0)
    small_model.export(str(path), format=format, verbose=False)
    for count in (1, 2):  # a batch of any size
        found = run(str(path), images[:count])
        np.testing.assert_allclose(found, expected[:count], atol=1e-6)


def test_openvino_reads_a_version_of_pixels(small_model, images, tmp_path):
    version = write_version(
        small_model, LABELS, tmp_path / "cait", signatures=["pixels"]
    )
    manifest = json.loads((version / "manifest.json").read_text())
    assert list(manifest["signatures"]) == ["pixels"]
    assert not any("Dataset" in name for name in manifest["operations"])
    converted = openvino.convert_model(version)
    outputs = openvino.compile_model(converted, "CPU", FLOAT32)(images)
    expected = small_model.predict(images, verbose=0)
    np.testing.assert_allclose(outputs["probabilities"], expected, atol=1e-6)
    encoded = [tf.io.encode_png(image).numpy() for image in images]
    found = load_predictor(version, LABELS, (32, 32))(encoded)
    expected = keras_predictor(small_model)(encoded)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    # The server reads the folder by itself, without Python.
    assert openvino.Core().read_model(version).get_parameters()
