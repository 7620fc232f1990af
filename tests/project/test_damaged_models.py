"""Damaged models are refused by one line, or give the same predictions."""

import shutil

import keras
import numpy as np
import pytest

import keras_cait
from keras_cait.loading import load_classifier
from tests.helpers.models import randomise, small
from tests.helpers.mutations import KINDS, mutate
from tests.helpers.reference import REFERENCE

IMAGES = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3))
IMAGES = IMAGES.astype("float32")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One model in each format that the project writes or reads."""
    from export.inference_graph import InferenceModel
    from export.litert import convert
    from export.metadata import add_metadata
    from export.serving.model_folder import write_version

    folder = tmp_path_factory.mktemp("models")
    model = randomise(small(depth=1))
    labels = list("abcde")
    model.save(folder / "model.keras")
    keras_cait.save_weights(model, folder / "model.safetensors")
    tflite = add_metadata(
        convert(InferenceModel(model)), labels, "small", "A small CaiT.", "1"
    )
    (folder / "model.tflite").write_bytes(tflite)
    write_version(model, labels, folder / "served")
    shutil.copy(REFERENCE / "tiny.pth", folder / "model.pth")
    return folder


def predictions(source):
    return keras.ops.convert_to_numpy(load_classifier(source).predict(IMAGES))


def assert_refused_or_equal(source, expected, mutation):
    try:
        found = predictions(source)
    except ValueError as error:
        assert source.name in str(error), mutation
        assert "\n" not in str(error), mutation
    else:
        np.testing.assert_array_equal(found, expected, mutation)


SEEDS = [
    range(6),
    pytest.param(range(6, 60), marks=pytest.mark.large),
]


@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "name", ["model.keras", "model.safetensors", "model.pth", "model.tflite"]
)
def test_damaged_file(files, tmp_path, name, kind, seeds):
    expected = predictions(files / name)
    content = (files / name).read_bytes()
    for seed in seeds:
        path = tmp_path / name
        path.write_bytes(mutate(content, kind, seed))
        assert_refused_or_equal(path, expected, (kind, seed))


@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_saved_model(files, tmp_path, kind, seeds):
    expected = predictions(files / "served")
    version = tmp_path / "served" / "1"
    shutil.copytree(files / "served" / "1", version)
    parts = sorted(file for file in version.rglob("*") if file.is_file())
    parts = [file for file in parts if file.stat().st_size]
    for seed in seeds:
        part = parts[seed % len(parts)]
        content = part.read_bytes()
        part.write_bytes(mutate(content, kind, seed))
        assert_refused_or_equal(tmp_path / "served", expected, (kind, seed))
        part.write_bytes(content)


@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_weights_h5(tmp_path, kind, seeds):
    """HDF5 has no checksum: damage to values alone cannot be found."""
    model = small(depth=1)
    path = tmp_path / "model.weights.h5"
    model.save_weights(path)
    content = path.read_bytes()
    for seed in seeds:
        path.write_bytes(mutate(content, kind, seed))
        try:
            keras_cait.load_weights(model, path)
        except ValueError as error:
            assert path.name in str(error), (kind, seed)
            assert "\n" not in str(error), (kind, seed)
