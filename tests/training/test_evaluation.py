"""Accuracy, from any kind of file, beside the published figures."""

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import keras_cait
import training.evaluate as program
from export.inference_graph import InferenceModel
from export.litert import convert
from export.metadata import add_metadata
from export.serving.model_folder import write_version
from keras_cait.datasets import open_dataset
from keras_cait.labels import check_classes
from keras_cait.loading import Classifier
from keras_cait.pretrained import PRETRAINED
from keras_cait.weights import save_weights
from tests.helpers.commands import exit_status
from tests.helpers.models import randomise
from training.data.datasets import Examples, load
from training.data.pipeline import evaluation_batches
from training.evaluation import load_for_evaluation, measure
from training.evaluation_table import MEASURED, table
from training.metrics import (
    Predictions,
    calibration_error,
    predictions,
    top_k,
)


def evaluate(*arguments):
    return exit_status(program.app, *arguments)


def test_an_image_is_correct_by_any_of_its_labels():
    """ReaL's metric: images without labels do not count."""
    probabilities = np.array(
        [[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1]]
    )
    labels = np.array([[0, 1, 0, 0], [1, 0, 0, 1], [0, 0, 0, 0]])
    found = predictions(probabilities, labels, k=2)
    assert found.correct.tolist() == [[False, True], [True, False], [False] * 2]
    assert top_k(found) == {"top1": 0.5, "top5": 1}
    assert found.labeled.sum() == 2
    one_each = predictions(probabilities, np.array([0, 0, 1]), k=2)
    assert top_k(one_each)["top1"] == pytest.approx(1 / 3)
    assert top_k(one_each)["top5"] == pytest.approx(2 / 3)
    ties = np.isin(np.arange(1000), [3, 900])[None] / 2
    assert predictions(ties, np.array([3])).correct[0, 0]


@pytest.mark.parametrize(
    ("scores", "message"),
    [([0.5, np.nan], "has diverged"), ([-2.0, 7.0], "from -2 to 7.*softmax")],
)
def test_predictions_that_are_no_probabilities_are_refused(scores, message):
    with pytest.raises(ValueError, match=message):
        predictions(np.array([scores]), np.array([0]))


def test_calibration_error_by_hand():
    """Intervals (0, 0.5] and (0.5, 1]: 0.4 sure, none right; 0.8, 2 of 3."""
    correct = np.array([[False], [True], [True], [False]])
    confidence = np.array([0.4, 0.7, 0.8, 0.9])
    found = Predictions(correct, np.ones(4, bool), confidence)
    expected = (1 * abs(0 - 0.4) + 3 * abs(2 / 3 - 0.8)) / 4
    assert calibration_error(found, bins=2) == pytest.approx(expected)
    # Both are in the interval (9/15, 10/15].
    pair = Predictions(correct[:2], np.ones(2, bool), np.array([0.61, 0.66]))
    assert calibration_error(pair) == pytest.approx(0.635 - 0.5)


# Of 1,000 images one may lie between two classes, or two bins of confidence,
# and rounding decides.
ONE_IMAGE = 2e-3


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """One model in every kind of file."""
    folder = tmp_path_factory.mktemp("kinds")
    model = randomise(
        keras_cait.CaiT(
            24, 2, 2, patch_size=7, input_shape=(28, 28, 3), classes=10
        )
    )
    model.save(folder / "model.keras")
    save_weights(model, folder / "model.safetensors")
    labels = [str(i) for i in range(10)]
    (folder / "labels.txt").write_text("".join(f"{i}\n" for i in range(10)))
    (folder / "run/checkpoints/best").mkdir(parents=True)
    shutil.copy(folder / "model.keras", folder / "run")
    raw = keras_cait.CaiT.from_config(model.get_config())
    randomise(raw, seed=1)
    for step, weights in ((9, model), (10, raw)):
        tf.train.Checkpoint(model=weights).write(
            str(folder / f"run/checkpoints/ckpt-{step}")
        )
    write_version(model, labels, folder / "saved", batch_sizes=(1,))
    tflite = convert(InferenceModel(model))
    tflite = add_metadata(tflite, labels, "cait", "digits", "1")
    (folder / "m.tflite").write_bytes(tflite)
    raw.save(folder / "raw.keras")
    return folder


def test_every_kind_of_file_gives_the_same_accuracy(kinds, tmp_path, capsys):
    results = {}
    for name in (
        "model.keras",
        "model.safetensors",
        "run",
        "saved/1",
        "m.tflite",
    ):
        options = ("--data", "digits", "--output", tmp_path)
        assert evaluate("--model", kinds / name, *options) == 0
    for file in tmp_path.glob("*.json"):
        result = json.loads(file.read_text())
        results[result["model"].rpartition("/")[2]] = result
    assert len(results) == 5
    expected = results["model.keras"]
    assert 0 < expected["top1"] < expected["top5"] < 1
    assert expected["images"] == 1000
    for result in results.values():
        for key in ("top1", "top5", "ece"):
            assert result[key] == pytest.approx(expected[key], abs=ONE_IMAGE)
        assert result["images_per_second"] > 0
    assert len((tmp_path / "table.md").read_text().splitlines()) == 7
    assert f"{100 * expected['top1']:.3f}" in capsys.readouterr().out


def write_photos(folder):
    folder.mkdir(parents=True)
    for i in range(10):
        color = (ord(folder.name[0]), i, 0)
        Image.new("RGB", (30, 30), color).save(folder / f"{i}.png")


def test_the_same_classes_in_another_order_are_refused():
    names, data = ("cat", "dog"), "folder:photos"
    for labels in (None, ["cat", "dog"], ["Hund", "Katze"]):
        check_classes(2, labels, names, data)
    with pytest.raises(ValueError, match="are dog, cat, but folder:photos has"):
        check_classes(2, ["dog", "cat"], names, data)


def test_unreadable_images_are_named(kinds, tmp_path, capsys):
    for label in "0123456789":
        write_photos(tmp_path / "photos" / label)
    photos = f"folder:{tmp_path / 'photos'}"
    first, second = [*open_dataset(photos, "validation").files][6:8]
    first.write_bytes(b"damaged")
    options = ("--data", photos)
    options += ("--output", tmp_path / "out")
    assert evaluate("--model", kinds / "model.keras", *options) == 1
    assert f"start again: {first}" in capsys.readouterr().err

    options += ("--max-unreadable", 1)
    assert evaluate("--model", kinds / "model.keras", *options) == 0
    said = capsys.readouterr().out
    assert f"unreadable image: {first}" in said
    assert "| 19 (1 unreadable left out) |" in said
    assert "no subfolder validation: measuring 19 images, 0.2" in said
    (result,) = (tmp_path / "out").glob("*.json")
    result = json.loads(result.read_text())
    assert result["images"] == 19
    assert result["unreadable"] == [str(first)]

    shutil.copy(second, second.with_name("new.png"))
    assert evaluate("--model", kinds / "model.keras", *options) == 1
    assert "another evaluation: content '19 images" in capsys.readouterr().err

    second.write_bytes(b"")
    with pytest.raises(ValueError, match="2 images cannot be read, more than"):
        load(photos, "validation", max_unreadable=1)


TWO_DEVICES = """
import tensorflow as tf
from keras_cait.command_line import run
from training.evaluate import app
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 2,
)
run(app)
"""


@pytest.mark.large
def test_two_devices_give_the_same_accuracy(kinds, tmp_path):
    """Of 1,000 images, in batches of which the last is padded."""
    options = ["--model", str(kinds / "model.keras"), "--data", "digits"]
    options += ["--batch-size", "96", "--output"]
    assert evaluate(*options, tmp_path / "one") == 0
    subprocess.run(
        [
            *(sys.executable, "-c", TWO_DEVICES, *options),
            *(str(tmp_path / "two"), "--strategy", "mirrored"),
        ],
        check=True,
    )
    one, two = (
        json.loads(next((tmp_path / name).glob("*.json")).read_text())
        for name in ("one", "two")
    )
    assert (one["devices"], two["devices"]) == (1, 2)
    for key in ("images", "weights"):
        assert one[key] == two[key]
    for key in ("top1", "top5", "ece"):
        assert one[key] == pytest.approx(two[key], abs=ONE_IMAGE)
    with pytest.raises(ValueError, match="must be a multiple of the 3 devices"):
        classifier = load_for_evaluation(kinds / "model.keras")
        strategy = SimpleNamespace(num_replicas_in_sync=3)
        path = tmp_path / "three.json"
        measure(classifier, noise(50), SETTINGS, path, 8, strategy)


def test_raw_weights_of_a_run_are_those_of_its_last_step(kinds):
    images = tf.constant(
        np.random.default_rng(0).uniform(0, 255, (2, 28, 28, 3))
    )
    images = tf.cast(images, tf.float32)
    raw, saved = (
        load_for_evaluation(kinds / name, raw=name == "run").predict(images)
        for name in ("run", "raw.keras")
    )
    np.testing.assert_array_equal(raw, saved)
    ema = load_for_evaluation(kinds / "run").predict(images)
    assert np.abs(ema - saved).max() > 0.01


def test_raw_weights_of_a_damaged_checkpoint_are_refused(kinds, tmp_path):
    run = shutil.copytree(kinds / "run", tmp_path / "run")
    for file in (run / "checkpoints").glob("*.data*"):
        file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(ValueError, match=r"is damaged\. Omit --raw"):
        load_for_evaluation(run, raw=True)


def test_bfloat16_is_used_where_asked_for(kinds):
    images = tf.random.uniform((2, 28, 28, 3), 0, 255, seed=0)
    for name in ("model.keras", "model.safetensors"):
        exact, rounded = (
            load_for_evaluation(kinds / name, precision).predict(images).numpy()
            for precision in ("float32", "mixed_bfloat16")
        )
        assert rounded.dtype == np.float32
        assert 0 < np.abs(exact - rounded).max() < 0.1


@pytest.fixture
def guesser():
    """A classifier that reads classes from the pixels, and counts calls."""
    calls = []

    def predict(images):
        calls.append(len(images))
        return tf.nn.softmax(images[:, 0, 0, :3] / 50)

    return Classifier(predict, (4, 4), 3), calls


def noise(count):
    random = np.random.default_rng(0)
    images = tf.constant(random.integers(0, 256, (count, 4, 4, 3), "uint8"))
    labels = tf.constant(random.integers(0, 3, count))
    return Examples(count, tuple("abc"), lambda i: (images[i], labels[i]))


SETTINGS = {"model": "guesser", "data": "noise", "crop_ratio": 1.0}


def test_an_interrupted_evaluation_resumes(guesser, tmp_path):
    classifier, calls = guesser
    whole = measure(classifier, noise(50), SETTINGS, tmp_path / "a.json", 8)
    assert sum(calls) == 56  # with the padding
    calls.clear()

    def interrupted(images):
        if len(calls) == 3:
            raise KeyboardInterrupt
        return classifier.predict(images)

    broken = Classifier(interrupted, (4, 4), 3)
    path = tmp_path / "b.json"
    with pytest.raises(KeyboardInterrupt):
        measure(broken, noise(50), SETTINGS, path, 8, save_seconds=0)
    assert not path.exists()
    calls.clear()
    rest = measure(classifier, noise(50), SETTINGS, path, 10)
    assert sum(calls) == 30  # of 50 - 3 * 8, in batches of 10
    for key in ("top1", "top5", "images"):
        assert rest[key] == whole[key]
    # Batches of 10 and of 8 sum in another order: float32 rounding.
    assert rest["ece"] == pytest.approx(whole["ece"], rel=1e-6)
    calls.clear()
    assert measure(classifier, noise(50), SETTINGS, path) == rest
    assert not calls
    with pytest.raises(ValueError, match=r"another evaluation: crop_ratio"):
        measure(classifier, noise(50), SETTINGS | {"crop_ratio": 0.9}, path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "b.json"]


def test_all_published_models_beside_their_figures(
    guesser, tmp_path, monkeypatch, capsys
):
    classifier, _ = guesser
    monkeypatch.setattr(program, "load_for_evaluation", lambda *_: classifier)
    monkeypatch.setattr(program, "load", lambda *_, **part: noise(50))
    options = ("--data", "imagenet2012", "--output", tmp_path)
    assert evaluate("--all", *options) == 0
    rows = (tmp_path / "table.md").read_text().splitlines()[2:]
    assert len(rows) == len(PRETRAINED)
    (row,) = [row for row in rows if "| S24-224 " in row]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    top1 = metrics_of(tmp_path)["top1"]
    assert cells[3:7] == [
        f"{100 * top1:.3f}",
        "83.484",
        f"{100 * top1 - 83.484:+.3f}",
        "83.5",
    ]
    assert capsys.readouterr().out.count("| imagenet2012 |") == len(PRETRAINED)


def metrics_of(folder):
    return json.loads(next(folder.glob("*S24*224*.json")).read_text())


def test_measured_figures_are_those_of_all_checkpoints():
    assert all(rows.keys() == PRETRAINED.keys() for rows in MEASURED.values())
    result = {
        **{"model": "m", "images": 1, "top1": 0.9, "top5": 0.99, "ece": 0.1},
        **{"images_per_second": None, "data": "imagenet2012_real"},
        "published": ["M48", 448],
    }
    assert "90.181 | -0.181 |  | 99.000 | 98.480" in table([result])


def test_images_with_many_labels_come_from_tensorflow_datasets(tmp_path):
    """As imagenet2012_real has them: also none."""
    import tensorflow_datasets as tfds

    images = [np.full((6, 5, 3), i, "uint8") for i in range(3)]
    labels = [[0, 2], [], [1]]

    class ManyLabels(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            label = tfds.features.ClassLabel(names=["a", "b", "c"])
            return self.dataset_info_from_configs(
                features=tfds.features.FeaturesDict(
                    {
                        "image": tfds.features.Image(encoding_format="png"),
                        "original_label": label,
                        "real_label": tfds.features.Sequence(label),
                    }
                )
            )

        def _split_generators(self, manager):
            return {"validation": self._generate_examples()}

        def _generate_examples(self):
            for i, (image, label) in enumerate(
                zip(images, labels, strict=True)
            ):
                yield (
                    i,
                    {
                        "image": image,
                        "original_label": 0,
                        "real_label": label,
                    },
                )

    tfds.builder("many_labels", data_dir=tmp_path).download_and_prepare()
    examples = load("many_labels", "validation", tmp_path)
    assert examples.class_names == ("a", "b", "c")
    decode = lambda image: tf.io.decode_png(image)[0, 0, 0]  # noqa: E731
    ((values, found, _),) = evaluation_batches(examples, decode, 3)
    expected = {0: [1, 0, 1], 1: [0, 0, 0], 2: [0, 1, 0]}
    assert {
        int(v): f.tolist() for v, f in zip(values, found.numpy(), strict=True)
    } == expected
    with pytest.raises(ValueError, match="has no train split"):
        load("many_labels", "train", tmp_path)
