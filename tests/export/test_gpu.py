"""LiteRT's GPU engine takes whole files, and computes what Keras does.

Chromium's software GPU stands in for phones. It has no float16, so the engine
computes in float32 on it.
"""

import numpy as np
import pytest

import keras_cait
from benchmarks.explanations import WEIGHTS, canvases
from benchmarks.explanations import model as moved_digits
from export.gpu import run_on_gpu
from export.inference_graph import InferenceModel
from export.litert import convert
from export.litert_report import report, run_lines
from export.quantization import quantize
from tests.helpers.models import randomise

# Largest difference of a probability from Keras.
TOLERANCE = {
    "float32": 1e-6,
    "float16": 2e-3,
    "dynamic-int8": 0.1,
    "static-int8": 0.1,
}


@pytest.fixture(scope="module")
def learned():
    """A model that has learned, and digits for it."""
    model = moved_digits()
    keras_cait.load_weights(model, WEIGHTS)
    images = canvases("validation", digits=1, count=4, seed=0).images
    return model, images.astype("float32")


@pytest.fixture(scope="module")
def files(learned, tmp_path_factory):
    """Writes files of the model in a scheme."""
    model, images = learned
    folder = tmp_path_factory.mktemp("files")
    float32 = convert(InferenceModel(model))

    def write(scheme):
        path = folder / f"{scheme}.tflite"
        path.write_bytes(quantize(float32, scheme, list(images)))
        return path

    return write


@pytest.mark.parametrize(
    "scheme",
    [
        "dynamic-int8",
        pytest.param("float16", marks=pytest.mark.large),
        pytest.param("static-int8", marks=pytest.mark.large),
    ],
)
def test_a_gpu_runs_whole_files(scheme, files, learned, vulkan):
    model, images = learned
    run = run_on_gpu(files(scheme), images)
    assert run.left_out == 0
    expected = model.predict(images, verbose=0)
    np.testing.assert_allclose(run.scores, expected, atol=TOLERANCE[scheme])


def test_the_report_tells_what_a_gpu_takes(files, learned, vulkan):
    model, images = learned
    (_, cells) = run_lines({"": report(files("float32"), model, images)})
    assert cells[4] == "0"
    assert float(cells[5]) <= TOLERANCE["float32"]


def test_a_gpu_leaves_int16_to_the_cpu(files, learned, vulkan):
    model, images = learned
    run = run_on_gpu(files("static-int8-int16"), images)
    assert "SwiftShader" in run.device and run.left_out > 0
    expected = model.predict(images, verbose=0)
    np.testing.assert_allclose(run.scores, expected, atol=0.1)


def test_there_may_be_no_gpu(files, learned, monkeypatch, tmp_path):
    monkeypatch.setenv("VK_ICD_FILENAMES", str(tmp_path / "none.json"))
    assert run_on_gpu(files("float32"), learned[1]) is None


@pytest.mark.large
@pytest.mark.parametrize("variant", ["XXS24", "S24"])
def test_a_gpu_runs_published_variants(variant, vulkan, tmp_path):
    build = getattr(keras_cait, f"CaiT_{variant}")
    model = randomise(build(weights=None, input_shape=(224, 224, 3)))
    path = tmp_path / "model.tflite"
    path.write_bytes(convert(InferenceModel(model)))
    images = np.random.default_rng(0).uniform(0, 255, (1, 224, 224, 3))
    run = run_on_gpu(path, images.astype("float32"), "float32")
    assert run.left_out == 0
    expected = model.predict(images, verbose=0)
    np.testing.assert_allclose(run.scores, expected, atol=1e-6)
