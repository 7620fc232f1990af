"""The site in a real browser, and its server."""

import json
import subprocess
import threading
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

import keras_cait
from export.__main__ import main
from export.web.server import site_server
from keras_cait.preprocessing import resize_and_crop
from tests.helpers.commands import exit_status
from tests.helpers.models import randomise
from tests.helpers.oracle_weights import make_input

BROWSER = Path(__file__).parent.parent / "browser"
LABELS = ["plain", "Löwe", "<b>bold</b>", "a long one, with a comma", "0"]
SIZES = {"wide": (75, 140), "small": (20, 30), "tall": (300, 90)}


@pytest.fixture(scope="module")
def model():
    # Not square, and all of its weights of order 1.
    return randomise(
        keras_cait.CaiT(
            24, 2, 2, patch_size=8, input_shape=(32, 48, 3), classes=5
        )
    )


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("examples")
    for name, size in SIZES.items():
        noise = make_input((1, *size, 3), seed=len(name))[0]
        pixels = np.clip(127 + 60 * noise, 0, 255).astype("uint8")
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


def litert(model, folder, name, *options):
    keras_file, labels = folder / "model.keras", folder / "labels.txt"
    model.save(keras_file)
    labels.write_text("\n".join(LABELS) + "\n")
    options = ["--model", keras_file, "--output", folder / name, *options]
    assert exit_status(main, "litert", *options) == 0
    return folder / name


@pytest.fixture(scope="module")
def site(model, examples, tmp_path_factory):
    folder = tmp_path_factory.mktemp("web")
    path = litert(model, folder, "lions.tflite", "--signatures", "attention")
    site = folder / "site"
    options = ["--model", path, "--output", site, "--examples", examples]
    assert exit_status(main, "web", *options) == 0
    options = ("--input", "uint8", "--logits")
    litert(model, site, "bytes.tflite", *options)
    return site


def test_the_page_matches_keras(model, examples, site):
    files = sorted(examples.iterdir())
    images = np.stack(
        [resize_and_crop(keras_cait.load_image(f), (32, 48)) for f in files]
    )
    probabilities = model.predict(images, verbose=0)
    maps = keras_cait.class_attention_maps(model, images)
    maps = np.mean(np.asarray(maps), axis=(1, 2)).reshape(len(files), -1)

    with site_server(site, port=0) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        seen = visit(f"http://localhost:{running.server_port}/")
        running.shutdown()

    assert seen["failures"] == []
    assert seen["isolated"]  # may use threads
    assert seen["width"] == 390  # nothing is wider than a phone
    for page, expected in zip(seen["pages"], probabilities, strict=True):
        order = np.argsort(-expected)
        assert page["labels"] == [LABELS[i] for i in order]
        shares = [float(share.removesuffix(" %")) for share in page["shares"]]
        np.testing.assert_allclose(shares, 100 * expected[order], atol=0.1)
        assert page["time"].endswith(" ms on this device")
    assert seen["attention"] == [True, False]  # shown, and then not
    assert seen["error"].startswith("This browser cannot read notes.txt")

    for file, outputs in seen["outputs"].items():
        assert outputs["progress"] == 1
        found = [one["probabilities"] for one in outputs["examples"]]
        np.testing.assert_allclose(found, probabilities, atol=1e-3)
        found = [one["attention"] for one in outputs["examples"]]
        if file == "bytes.tflite":
            assert found == [None] * 3
        else:
            np.testing.assert_allclose(found, maps, atol=1e-3)


def visit(url):
    """What a visitor sees, with the browser that npm brings."""
    if not (BROWSER / "node_modules").exists():
        subprocess.run(["npm", "ci"], cwd=BROWSER, check=True)
    program = ["node", BROWSER / "classify.mjs", url]
    models = ["model.tflite", "bytes.tflite"]
    ended = subprocess.run(
        [*program, *models], capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout)


def test_a_site_is_whole_or_not_there(site, tmp_path, monkeypatch, capsys):
    assert (site / "litert" / "wasm" / "litert_wasm_internal.wasm").exists()
    assert not list(site.glob("package*")) + list(site.glob("node_modules"))

    def refused(*arguments):
        assert exit_status(main, "web", *arguments) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert list(tmp_path.iterdir()) == []
        return error

    target, good = tmp_path / "site", site / "model.tflite"
    output = ("--output", target)
    assert "no site" in refused(*output, "--serve")
    assert ".tflite files" in refused(*output, "--model", site / "page.js")
    batch = litert(
        keras.models.load_model(site / "model.keras"),
        site,
        "two.tflite",
        "--batch-size",
        "2",
    )
    capsys.readouterr()
    assert "batch size 2" in refused(*output, "--model", batch)
    assert "exists" in refused("--output", site, "--model", good)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "npm" in refused(*output, "--model", good)
