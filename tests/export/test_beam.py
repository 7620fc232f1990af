"""Apache Beam runs the program of docs/batch.md."""

import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from export.predictors import keras_predictor
from export.serving.model_folder import write_version
from tests.helpers.environments import make_environment

DOCUMENT = Path(__file__).parents[2] / "docs/batch.md"
LABELS = [f"class {i}" for i in range(5)]


@pytest.mark.large
def test_beam_classifies(small_model, images, tmp_path):
    programs = make_environment(
        tmp_path / "venv", ["apache-beam>=2.77", "tensorflow-cpu<2.21"]
    )
    (program,) = re.findall(
        r"```python\n(import json\n.*?)```", DOCUMENT.read_text(), re.S
    )
    (tmp_path / "classify.py").write_text(program)
    version = write_version(small_model, LABELS, tmp_path / "model")
    photos = tmp_path / "photos"
    photos.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(photos / f"{i}.png")
    (photos / "junk.png").write_bytes(b"junk")
    subprocess.run(
        [
            *(programs / "python", tmp_path / "classify.py"),
            *(version, photos / "*.png", tmp_path / "predictions"),
        ],
        check=True,
    )
    lines = [
        json.loads(line)
        for file in tmp_path.glob("predictions*.jsonl")
        for line in file.read_text().splitlines()
    ]
    found = {Path(line["image"]).name: line for line in lines}
    assert sorted(found) == ["0.png", "1.png", "junk.png"]
    junk = found.pop("junk.png")
    assert junk["error"] and junk["classes"] == junk["scores"] == []
    encoded = [(photos / name).read_bytes() for name in sorted(found)]
    for (_, line), expected in zip(
        sorted(found.items()),
        keras_predictor(small_model)(encoded),
        strict=True,
    ):
        best = np.argsort(-expected)
        assert line["classes"] == [LABELS[i] for i in best]
        assert line["error"] is None
        np.testing.assert_allclose(line["scores"], expected[best], atol=1e-6)
