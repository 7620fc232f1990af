"""Exported files match the Keras model, and appear whole or not at all."""

import io
import json
import logging
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from ai_edge_litert.tools import flatbuffer_utils

import keras_cait
from export import verify
from export.__main__ import main
from export.inference_graph import InferenceModel
from export.litert import convert
from export.litert_report import operations
from export.predictors import (
    keras_predictor,
    litert_predictor,
    load_predictor,
)
from export.quantization import SCHEMES, calibration_images, quiet
from export.serving.model_folder import write_version
from keras_cait.decoding import resize_and_crop_in_graph
from keras_cait.labels import find_labels
from keras_cait.litert import LiteRTModel
from keras_cait.preprocessing import (
    load_image,
    resize_and_crop,
)
from tests.helpers.commands import exit_status
from tests.helpers.models import LABELS, randomise, small
from tests.helpers.reference import IMAGES, REFERENCE


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model with weights of order 1, exported to both formats."""
    folder = tmp_path_factory.mktemp("exported")
    model = randomise(small())
    model.save(folder / "model.keras")
    (folder / "labels.txt").write_text("\n".join(LABELS))
    write_version(model, LABELS, folder / "models/cait", batch_sizes=(1,))
    options = ["--model", folder / "model.keras"]
    options += ["--output", folder / "model.tflite"]
    assert exit_status(main, "litert", *options) == 0
    return folder


@pytest.fixture(scope="module")
def expected(exported):
    """Probabilities of the Keras model."""
    model = keras.models.load_model(exported / "model.keras")
    images = [resize_and_crop(load_image(file), 32) for file in IMAGES]
    return model.predict(np.stack(images), verbose=0)


@pytest.mark.parametrize("shape", [(32, 32, 3), (None, None, 3)])
def test_models_export_themselves(shape, images, tmp_path):
    model = randomise(
        small(input_shape=shape, grid_size=(4, 4), classifier_activation=None)
    )
    model.export(tmp_path / "model", verbose=False)
    loaded = tf.saved_model.load(tmp_path / "model")
    np.testing.assert_allclose(
        loaded.serve(images.astype("float32")), model(images), atol=1e-5
    )


def test_resize_of_any_size_in_a_graph():
    @tf.function(input_signature=[tf.TensorSpec((None, None, None), tf.uint8)])
    def resize(image):
        return resize_and_crop_in_graph(image, (96, 160), 0.8)

    rng = np.random.default_rng(0)
    for shape in [(48, 64, 3), (375, 500, 3), (500, 33, 3), (101, 1000, 3)]:
        image = rng.integers(0, 256, shape, "uint8")
        expected = resize_and_crop(image, (96, 160), 0.8)
        assert np.abs(resize(image).numpy() - expected).max() <= 1


def test_litert_runs_whole_on_the_delegate(exported, images):
    interpreter = Interpreter(str(exported / "model.tflite"))
    interpreter.allocate_tensors()
    names = {node["op_name"] for node in interpreter._get_ops_details()}
    assert not any(name.startswith("Flex") for name in names)
    assert operations(exported / "model.tflite")[1:] == (0, 1)
    tensors = interpreter.get_tensor_details()
    assert max(len(tensor["shape"]) for tensor in tensors) <= 4

    runner = interpreter.get_signature_runner()
    model = keras.models.load_model(exported / "model.keras")
    for image in images.astype("float32"):
        found = runner(images=image[None])["probabilities"]
        np.testing.assert_allclose(
            found, model.predict(image[None], verbose=0), atol=1e-6
        )


def test_a_gpu_takes_every_operation(exported):
    """LiteRT's GPU engine refuses products whose left side is constant.

    And it computes nothing, without a word, where a tensor is wider than the
    8192 pixels of a texture that WebGPU guarantees.
    """
    model = flatbuffer_utils.read_model(str(exported / "model.tflite"))
    (graph,) = model.subgraphs
    product = schema.BuiltinOperator.BATCH_MATMUL
    lefts = [
        graph.tensors[operator.inputs[0]]
        for operator in graph.operators
        if model.operatorCodes[operator.opcodeIndex].builtinCode == product
    ]
    assert lefts
    buffers = [model.buffers[tensor.buffer].data for tensor in lefts]
    assert all(buffer is None for buffer in buffers)
    assert max(max(x.shape, default=1) for x in graph.tensors) <= 8192


# How far the largest probability may move, and whether XNNPACK runs it whole.
QUANTIZED = {
    "float32": (1e-6, True),
    "float16": (5e-4, True),
    "dynamic-int8": (5e-3, True),
    "static-int8": (8e-3, True),
    "static-int8-int16": (5e-3, False),  # no more than the weights cost
}


@pytest.mark.parametrize("threads", [1, 2, 6])
def test_every_call_gets_its_own_images(threads, exported, images):
    """Several runs at once, and several callers."""
    model = keras.models.load_model(exported / "model.keras")
    predict = LiteRTModel(exported / "model.tflite", threads)
    many = np.random.default_rng(0).uniform(0, 255, (40, *images.shape[1:]))
    expected = model.predict(many, verbose=0)
    calls = [slice(i, i + count) for count in (1, 2, 7) for i in range(30)]
    with ThreadPoolExecutor(4) as callers:
        found = list(callers.map(lambda call: predict(many[call]), calls))
    for call, probabilities in zip(calls, found, strict=True):
        np.testing.assert_allclose(probabilities, expected[call], atol=1e-5)


def test_an_error_ends_all_runs(exported, images):
    predict = LiteRTModel(exported / "model.tflite", threads=2)
    runs = []

    def fail(images):
        raise KeyboardInterrupt

    def run(images):
        time.sleep(0.01)
        runs.append(images)
        return {"probabilities": np.zeros((1, len(LABELS)))}

    predict.streams = [fail, run]
    with pytest.raises(KeyboardInterrupt):
        predict(np.repeat(images[:1], 1000, axis=0))
    assert len(runs) < 100
    with pytest.raises(ValueError, match=r"\(images, 32, 32, 3\), got \(32, "):
        predict(images[0])


@pytest.fixture(scope="module")
def quantized(exported):
    """A file of each scheme, calibrated on the images."""
    output = exported / "quantized"
    options = ["--model", exported / "model.keras", "--output", output]
    options += ["--calibration", f"folder:{REFERENCE / 'preprocess'}"]
    options += ["--scheme", *SCHEMES]
    log = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(log):
        patch.setattr("export.quantization.CALIBRATED_TOGETHER", 2)
        assert exit_status(main, "litert", *options) == 0
    # A line per scheme, as stderr is no terminal.
    assert log.getvalue().count("Calibrated") == 2
    return output


@pytest.mark.parametrize("scheme", SCHEMES)
def test_quantized_files_stay_near_the_model(scheme, quantized, expected):
    file = quantized / f"{scheme}.tflite"
    tolerance, is_whole = QUANTIZED[scheme]
    predict = litert_predictor(file, LABELS, (32, 32))
    found = predict([image.read_bytes() for image in IMAGES])
    difference = np.abs(found - expected).max()
    assert difference <= tolerance
    assert (difference > 1e-6) == (scheme != "float32")
    assert (operations(file)[1:] == (0, 1)) == is_whole
    if scheme != "float32":
        whole = (quantized / "float32.tflite").stat().st_size
        assert file.stat().st_size < 0.9 * whole


def test_the_quantizer_logs_nothing(caplog):
    with quiet():
        logging.warning("Quantized data is overriding other data.")
    logging.warning("After it.")
    assert caplog.messages == ["After it."]


def test_calibration_takes_training_images_of_a_dataset(tmp_path):
    import tensorflow_datasets as tfds

    image = tfds.features.Image(encoding_format="png")
    tfds.dataset_builders.store_as_tfds_dataset(
        "photos",
        "1.0.0",
        tfds.features.FeaturesDict(
            {"image": image, "label": tfds.features.ClassLabel(num_classes=1)}
        ),
        {
            "train": [
                (i, {"image": np.full((40, 30, 3), i, "uint8"), "label": 0})
                for i in range(5)
            ]
        },
        data_dir=tmp_path,
        file_format="array_record",
    )
    images = calibration_images("photos", (32, 48), 3, tmp_path)
    assert {image.shape for image in images} == {(32, 48, 3)}
    values = {float(image.max()) for image in images}
    assert len(values) == 3 and values <= set(range(5))


def test_every_option_in_one_file(exported, images, tmp_path):
    output = tmp_path / "model.tflite"
    options = ["--model", exported / "model.keras", "--output", output]
    options += ["--signatures", "embedding", "attention", "--gelu", "tanh"]
    options += ["--input", "uint8", "--batch-size", "2", "--logits"]
    assert exit_status(main, "litert", *options) == 0
    assert operations(output)[1:] == (0, 1)
    assert find_labels(output) == LABELS

    model = keras.models.load_model(exported / "model.keras")
    outputs = InferenceModel(model, gelu="tanh")(images)
    by_tanh, trained = (
        outputs["probabilities"].numpy(),
        model.predict(images, verbose=0),
    )
    assert 1e-6 < np.abs(by_tanh - trained).max() < 5e-3
    outputs["attention"] = tf.reshape(outputs["attention"], (2, 4, 4, 4))
    interpreter = Interpreter(str(output))
    found = {}
    for name in ("serving_default", "embedding", "attention"):
        runner = interpreter.get_signature_runner(name)
        found |= runner(images=images)
    assert set(found) == {"logits", "embedding", "attention"}
    for name, value in found.items():
        np.testing.assert_allclose(value, outputs[name], atol=1e-4)
    predict = LiteRTModel(output)
    np.testing.assert_allclose(predict(images[:1]), by_tanh[:1], atol=1e-5)
    thirds = images[:1] % 3
    np.testing.assert_array_equal(
        predict(np.choose(thirds, [-3.0, 0.6, 259.0])),
        predict(np.choose(thirds, [0, 1, 255])),
    )


def of_something_else(path):
    """A `.tflite` file that doubles a number."""
    double = tf.function(lambda x: 2 * x, [tf.TensorSpec((1,))])
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [double.get_concrete_function()]
    )
    path.write_bytes(converter.convert())


def of_another_model(path):
    model = keras_cait.CaiT(24, 1, 2, 8, input_shape=(32, 32, 3), classes=5)
    path.write_bytes(convert(InferenceModel(model)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (of_something_else, "is not an image classifier"),
        (of_another_model, "has 3 blocks and the model 4"),
    ],
)
def test_verify_refuses_other_files(make, message, exported, tmp_path, capsys):
    make(tmp_path / "other.tflite")
    folder = tmp_path / "images" / "validation" / LABELS[0]
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(IMAGES[0].read_bytes())
    options = ["--model", exported / "model.keras"]
    options += ["--data", f"folder:{tmp_path / 'images'}"]
    options += ["--output", tmp_path / "verify.json"]
    file = tmp_path / "other.tflite"
    assert exit_status(main, "verify", file, *options) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "verify.json").exists()


@pytest.mark.parametrize("name", ["models/cait/1", "model.tflite"])
def test_other_sizes_and_labels_are_refused(name, exported):
    with pytest.raises(ValueError, match=r"32 x 32 pixels, but .* 48 x 32"):
        load_predictor(exported / name, LABELS, (48, 32))
    with pytest.raises(ValueError, match="has other labels than the model"):
        load_predictor(exported / name, LABELS[::-1], (32, 32))


@pytest.mark.parametrize(
    "file", ["variables/variables.data-00000-of-00001", "manifest.json"]
)
def test_a_half_copied_saved_model_is_named(file, exported, tmp_path):
    version = tmp_path / "1"
    shutil.copytree(exported / "models/cait/1", version)
    os.truncate(version / file, (version / file).stat().st_size // 2)
    with pytest.raises(ValueError, match=rf"Cannot load '.*/1' as .*{file}"):
        load_predictor(version, LABELS, (32, 32))


def test_a_damaged_file_does_not_run(exported, tmp_path):
    content = bytearray((exported / "model.tflite").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "model.tflite").write_bytes(content)
    with pytest.raises(ValueError, match="its checksum is wrong"):
        LiteRTModel(tmp_path / "model.tflite")


def test_labels_beside_a_file_are_not_its_own(tmp_path):
    of_another_model(tmp_path / "other.tflite")
    (tmp_path / "labels.txt").write_text("\n".join(LABELS[::-1]))
    load_predictor(tmp_path / "other.tflite", LABELS, (32, 32))


def test_verify_compares_on_labeled_images(
    exported, expected, tmp_path, capsys
):
    top1 = expected.argmax(axis=-1)
    for i, file in enumerate(IMAGES):
        label = top1[i] if i else (top1[i] + 1) % 5  # one of them is wrong
        folder = tmp_path / "images" / "validation" / LABELS[label]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / file.name).write_bytes(file.read_bytes())
    files = [exported / name for name in ("models/cait", "model.tflite")]
    options = ["--model", exported / "model.keras"]
    options += ["--data", f"folder:{tmp_path / 'images'}", "--batch-size", "4"]
    options += ["--output", tmp_path / "verify.json"]
    assert exit_status(main, "verify", *files, *options) == 0
    rows = json.loads((tmp_path / "verify.json").read_text())
    paths = [str(exported / "models/cait/1"), str(exported / "model.tflite")]
    assert [row["name"] for row in rows] == ["Keras", *paths]
    for row in rows:
        assert row["top1"] == pytest.approx(1 - 1 / len(IMAGES))
        assert row["top5"] == 1.0  # of five classes
        assert row["agreement"] == 1.0
        assert row["max_difference"] < 1e-3
        assert row["milliseconds"] > 0
    report = rows[-1]["litert"]
    assert (report["left_out"], report["partitions"]) == (0, 1)
    assert set(report["milliseconds"]) == {"1", "2"}
    assert rows[-1]["megabytes"] == files[-1].stat().st_size / 1e6
    assert len(report["blocks"]) == 4
    for block in report["blocks"].values():
        assert block["snr"] > 100 and block["cosine"] > 0.999999
    assert "class_attention_block_1" in capsys.readouterr().out


def test_a_row_by_hand():
    """The right class is the fifth best of one image, the sixth of another."""
    expected = np.array([[0.3, 0.25, 0.2, 0.15, 0.1, 0.0]] * 2)
    scores, truth = expected.copy(), np.array([4, 5])
    scores[1, :2] = 0.2, 0.35
    found = verify.row("1", scores, expected, truth, "abcdef", 1.0, 1.0, None)
    assert (found.top1, found.top5, found.agreement) == (0, 0.5, 0.5)
    assert found.max_difference == pytest.approx(0.1)
    assert found.example == ("a", 0.3)


def test_of_equal_scores_the_first_is_best():
    scores = np.zeros((1, 1000), "float32")
    scores[0, [3, 900]] = 0.5
    truth = np.array([3])
    found = verify.row("Keras", scores, scores, truth, LABELS, 1.0, 1.0, None)
    assert (found.top1, found.agreement) == (1, 1)


def test_a_class_that_is_not_returned_is_not_found():
    scores = np.array([[0.9, verify.UNKNOWN]])
    truth = np.ones(1, int)
    found = verify.row("1", scores, scores, truth, LABELS, 1.0, 1.0, None)
    assert found.top5 == 0


def test_verify_compares_probabilities_of_a_head_of_logits():
    predict = keras_predictor(randomise(small(classifier_activation=None)))
    np.testing.assert_allclose(
        predict([file.read_bytes() for file in IMAGES]).sum(axis=1), 1, 1e-5
    )


def test_logits_of_a_sigmoid_are_refused():
    model = InferenceModel(small(classifier_activation="sigmoid"))
    with pytest.raises(ValueError, match="Omit --logits"):
        convert(model, softmax=False)


def test_a_failed_export_leaves_nothing(
    exported, tmp_path, capsys, monkeypatch
):
    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("export.litert.convert", full_disk)
    options = ["--model", exported / "model.keras"]
    options += ["--output", tmp_path / "files/model.tflite"]
    assert exit_status(main, "litert", *options) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
