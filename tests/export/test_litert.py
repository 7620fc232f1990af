"""Exported files give the Keras model's answers, whole or not at all."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

import keras_cait
from export.__main__ import main
from export.inference_graph import InferenceModel
from export.litert import convert
from export.litert_report import operations
from export.litert_runner import LiteRTClassifier
from export.metadata import read_labels
from export.quantization import RECIPES, calibration_images
from export.serving.model_folder import write_version
from export.verify import litert_classifier
from keras_cait.preprocessing import (
    load_image,
    resize_and_crop,
    resize_and_crop_in_graph,
)
from tests.helpers.models import randomise
from tests.helpers.reference import REFERENCE

LABELS = [f"class {i}" for i in range(5)]
PICTURES = sorted((REFERENCE / "preprocess").rglob("*.png"))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model with weights of order 1, exported to both formats."""
    folder = tmp_path_factory.mktemp("exported")
    model = randomise(
        keras_cait.CaiT(
            24, 2, 2, patch_size=8, input_shape=(32, 32, 3), classes=5
        )
    )
    model.save(folder / "model.keras")
    (folder / "labels.txt").write_text("\n".join(LABELS))
    write_version(model, LABELS, folder / "models/cait", batch_sizes=(1,))
    weights = ["--weights", str(folder / "model.keras")]
    output = ["--output", str(folder / "model.tflite")]
    assert main(["litert", *weights, *output]) == 0
    return folder


@pytest.fixture(scope="module")
def expected(exported):
    """Probabilities of the Keras model on the pictures."""
    model = keras.models.load_model(exported / "model.keras")
    images = [resize_and_crop(load_image(file), 32) for file in PICTURES]
    return model.predict(np.stack(images), verbose=0)


@pytest.mark.parametrize("shape", [(32, 32, 3), (None, None, 3)])
def test_models_export_themselves(shape, pictures, tmp_path):
    model = randomise(
        keras_cait.CaiT(
            24,
            2,
            2,
            patch_size=8,
            input_shape=shape,
            grid_size=(4, 4),
            classes=5,
            classifier_activation=None,
        )
    )
    model.export(tmp_path / "model", verbose=False)
    loaded = tf.saved_model.load(tmp_path / "model")
    np.testing.assert_allclose(
        loaded.serve(pictures.astype("float32")), model(pictures), atol=1e-5
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


def test_litert_runs_whole_on_the_delegate(exported, pictures):
    interpreter = Interpreter(str(exported / "model.tflite"))
    interpreter.allocate_tensors()
    names = {node["op_name"] for node in interpreter._get_ops_details()}
    assert not any(name.startswith("Flex") for name in names)
    assert operations(exported / "model.tflite")[1:] == (0, 1)
    tensors = interpreter.get_tensor_details()
    assert max(len(tensor["shape"]) for tensor in tensors) <= 4

    runner = interpreter.get_signature_runner()
    model = keras.models.load_model(exported / "model.keras")
    for picture in pictures.astype("float32"):
        answer = runner(images=picture[None])["probabilities"]
        np.testing.assert_allclose(
            answer, model.predict(picture[None], verbose=0), atol=1e-6
        )


# How far the largest probability may move, and whether XNNPACK runs it whole.
QUANTISED = {
    "float32": (1e-6, True),
    "float16": (2e-2, True),
    "dynamic-int8": (0.1, True),
    "static-int8": (0.2, True),
    "static-int8-int16": (0.1, False),
}


@pytest.fixture(scope="module")
def quantised(exported):
    """A file of each recipe, calibrated on the pictures."""
    output = exported / "quantised"
    arguments = [
        *("litert", "--weights", str(exported / "model.keras")),
        *("--quantize", ",".join(RECIPES)),
        *("--calibration", str(REFERENCE / "preprocess")),
        *("--output", str(output)),
    ]
    assert main(arguments) == 0
    return output


@pytest.mark.parametrize("recipe", RECIPES)
def test_quantised_files_stay_near_the_model(recipe, quantised, expected):
    file = quantised / f"{recipe}.tflite"
    tolerance, is_whole = QUANTISED[recipe]
    classify = litert_classifier(file, LABELS)
    answers = classify([picture.read_bytes() for picture in PICTURES])
    difference = np.abs(answers - expected).max()
    assert difference <= tolerance
    assert (difference > 1e-6) == (recipe != "float32")
    assert (operations(file)[1:] == (0, 1)) == is_whole
    if recipe != "float32":
        whole = (quantised / "float32.tflite").stat().st_size
        assert file.stat().st_size < 0.9 * whole


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--quantize", "int4"), "A recipe is one of"),
        (("--quantize", "static-int8"), "--calibration FOLDER"),
        (("--signatures", "scores"), "signatures must be of embedding"),
        (("--batch-size", "0"), "batch_size must be at least 1"),
        (("--labels", "EMPTY.txt"), "The model has 5 classes. Received: 1"),
        (("--weights", "EMPTY.keras"), "Only a CaiT is exported"),
        (("--output", "EMPTY.txt/model.tflite"), "File exists"),
        (
            ("--quantize", "static-int8", "--calibration", "EMPTY"),
            "There are no pictures in",
        ),
        (
            ("--quantize", "static-int8", "--calibration", "EMPTY.txt"),
            "must be a folder of pictures or the name of a set",
        ),
        (
            ("--quantize", "static-int8", "--calibration", "cifar10"),
            "Prepare it first: python -m training.prepare cifar10",
        ),
    ],
)
def test_litert_refuses_with_nothing_written(
    options, message, exported, tmp_path, capsys
):
    empty = tmp_path / "empty"
    empty.mkdir()
    empty.with_suffix(".txt").write_text("one\n")
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]).save(
        empty.with_suffix(".keras")
    )
    arguments = [
        *("litert", "--weights", str(exported / "model.keras")),
        *("--output", str(tmp_path / "files/model.tflite")),
        *(option.replace("EMPTY", str(empty)) for option in options),
    ]
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    files = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {"empty.txt", "empty.keras"}


def test_calibration_takes_training_pictures_of_a_data_set(tmp_path):
    import tensorflow_datasets as tfds

    image = tfds.features.Image(encoding_format="png")
    tfds.dataset_builders.store_as_tfds_dataset(
        "photos",
        "1.0.0",
        tfds.features.FeaturesDict({"image": image}),
        {
            "train": [
                (i, {"image": np.full((40, 30, 3), i, "uint8")})
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


def test_every_option_in_one_file(exported, pictures, tmp_path):
    weights = str(exported / "model.keras")
    output = tmp_path / "model.tflite"
    arguments = [
        *("litert", "--weights", weights, "--output", str(output)),
        *("--signatures", "embedding,attention", "--gelu", "tanh"),
        *("--input", "uint8", "--batch-size", "2", "--logits"),
    ]
    assert main(arguments) == 0
    assert operations(output)[1:] == (0, 1)
    assert read_labels(output) == LABELS

    model = keras.models.load_model(weights)
    answers = InferenceModel(model, gelu="tanh")(pictures)
    by_tanh, trained = (
        answers["probabilities"].numpy(),
        model.predict(pictures, verbose=0),
    )
    assert 1e-6 < np.abs(by_tanh - trained).max() < 5e-3
    answers["attention"] = tf.reshape(answers["attention"], (2, 4, 4, 4))
    interpreter = Interpreter(str(output))
    found = {}
    for name in ("serving_default", "embedding", "attention"):
        runner = interpreter.get_signature_runner(name)
        found |= runner(images=pictures)
    assert set(found) == {"logits", "embedding", "attention"}
    for name, value in found.items():
        np.testing.assert_allclose(value, answers[name], atol=1e-4)
    classify = LiteRTClassifier(output)
    np.testing.assert_allclose(classify(pictures[:1]), by_tanh[:1], atol=1e-5)


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
        (lambda path: path.write_text("no file"), "is no .tflite file"),
        (of_something_else, "is no classifier of pictures"),
        (of_another_model, "has 3 blocks, the model 4"),
    ],
)
def test_verify_refuses_other_files(make, message, exported, tmp_path, capsys):
    make(tmp_path / "other.tflite")
    folder = tmp_path / "pictures" / LABELS[0]
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(PICTURES[0].read_bytes())
    arguments = [
        *("verify", str(tmp_path / "other.tflite")),
        *("--weights", str(exported / "model.keras")),
        *("--pictures", str(tmp_path / "pictures")),
        *("--output", str(tmp_path / "verify.json")),
    ]
    assert main(arguments) == 1
    error = capsys.readouterr().err.rstrip().rpartition("ValueError: ")[2]
    assert message in error and "\n" not in error
    assert not (tmp_path / "verify.json").exists()


def test_verify_compares_on_labelled_pictures(
    exported, expected, tmp_path, capsys
):
    top1 = expected.argmax(axis=-1)
    for i, file in enumerate(PICTURES):
        label = top1[i] if i else (top1[i] + 1) % 5  # one of them is wrong
        folder = tmp_path / "pictures" / LABELS[label]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / file.name).write_bytes(file.read_bytes())
    files = [str(exported / name) for name in ("models/cait", "model.tflite")]
    arguments = [
        *("verify", *files),
        *("--weights", str(exported / "model.keras")),
        *("--pictures", str(tmp_path / "pictures")),
        *("--output", str(tmp_path / "verify.json")),
    ]
    assert main(arguments) == 0
    rows = json.loads((tmp_path / "verify.json").read_text())
    assert [row["name"] for row in rows] == ["Keras", "cait/1", "model.tflite"]
    for row in rows:
        assert row["top1"] == pytest.approx(1 - 1 / len(PICTURES))
        assert row["top5"] == 1.0  # of five classes
        assert row["agreement"] == 1.0
        assert row["max_difference"] < 1e-3
        assert row["milliseconds"] > 0
    report = rows[-1]["litert"]
    assert (report["left_out"], report["partitions"]) == (0, 1)
    assert set(report["milliseconds"]) == {"1", "2"}
    assert len(report["blocks"]) == 4
    for block in report["blocks"].values():
        assert block["snr"] > 100 and block["cosine"] > 0.999999
    assert "class_attention_block_1" in capsys.readouterr().out


def test_nothing_is_overwritten(exported, capsys):
    output = exported / "model.tflite"
    before = output.read_bytes()
    weights = str(exported / "model.keras")
    arguments = ["litert", "--weights", weights, "--output", str(output)]
    assert main(arguments) == 1
    assert "exists already" in capsys.readouterr().err
    assert output.read_bytes() == before


def test_a_failed_export_leaves_nothing(
    exported, tmp_path, capsys, monkeypatch
):
    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("export.litert.convert", full_disk)
    weights = str(exported / "model.keras")
    output = str(tmp_path / "files/model.tflite")
    assert main(["litert", "--weights", weights, "--output", output]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": "missing.keras"}, "missing.keras"),
        ({"labels": "missing.txt"}, "There are no labels at"),
        ({"output": "file/cait"}, "File exists"),
    ],
)
def test_bad_input_ends_in_one_line(
    exported, change, message, tmp_path, capsys
):
    (tmp_path / "file").touch()
    arguments = {
        "weights": exported / "model.keras",
        "labels": exported / "labels.txt",
        "output": tmp_path / "cait",
    }
    arguments |= {key: tmp_path / name for key, name in change.items()}
    flags = [f"--{key}={value}" for key, value in arguments.items()]
    assert main(["saved-model", *flags]) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
