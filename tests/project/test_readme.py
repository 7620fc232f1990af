"""The README's Python code runs, and its first block is the two commands."""

import re
import shutil

import keras
import pytest
from PIL import Image

import keras_cait
from tests.helpers.reference import REFERENCE

ROOT = REFERENCE.parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
PYTHON = [block for language, block in BLOCKS if language == "python"]
FINE_TUNING = re.search(
    r"```python\n(.*?)```",
    (ROOT / "docs/fine-tuning.md").read_text(),
    re.DOTALL,
)[1]


def test_the_two_commands_come_first():
    assert BLOCKS[0] == ("", "make quickstart\nmake test\n")


def test_every_run_folder_is_the_quickstarts():
    assert set(re.findall(r"\bruns/\w+", README)) == {"runs/quickstart"}


def test_the_code_for_one_image_runs(tmp_path, monkeypatch, capsys):
    image = REFERENCE / "preprocess/landscape_500x375.png"
    shutil.copy(image, tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(PYTHON[0].replace('weights="imagenet"', "weights=None"), names)
    assert names["maps"].shape == (1, 2, 8, 14, 14)
    assert re.search(r"'n\d{8}'", capsys.readouterr().out)


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(PYTHON[1], id="README"),
        pytest.param(FINE_TUNING, id="docs", marks=pytest.mark.large),
    ],
)
def test_the_code_for_fine_tuning_runs(code, tmp_path, monkeypatch):
    """On a few images, with a tiny model in place of the published one."""

    def tiny(weights, classes):
        assert weights == "imagenet"
        return keras_cait.CaiT(24, 1, 2, patch_size=56, classes=classes)

    monkeypatch.setattr(keras_cait, "CaiT_XXS24", tiny)
    monkeypatch.chdir(tmp_path)
    for index in range(10):
        folder = tmp_path / "photos" / ("cat", "dog")[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", (40, 30), (20 * index, 90, 160))
        image.save(folder / f"{index}.jpg")
    exec(code, {})
    model = keras.saving.load_model("photos.keras")
    assert model.output_shape == (None, 2)
    assert model.optimizer.layer_decay == 0.75
