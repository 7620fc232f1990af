"""The site in a real browser, and its server."""

import json
import os
import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import keras_cait
from export.__main__ import main
from export.web.server import site_server
from keras_cait.litert import softmax
from keras_cait.preprocessing import resize_and_crop
from tests.helpers.commands import exit_status
from tests.helpers.models import randomise, small
from tests.helpers.oracle_weights import make_input

LABELS = ["plain", "Löwe", "<b>bold</b>", "a long one, with a comma", "0"]
KERNEL = make_input((3, 5), seed=1)
SIZES = {"wide_one": (75, 140), "small": (20, 30), "plain/tall": (300, 90)}


@pytest.fixture(scope="module")
def model():
    # Not square, and all of its weights of order 1.
    return randomise(small(input_shape=(32, 48, 3)))


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    folder = tmp_path_factory.mktemp("examples")
    for name, size in SIZES.items():
        noise = make_input((1, *size, 3), seed=len(name))[0]
        pixels = np.clip(127 + 60 * noise, 0, 255).astype("uint8")
        path = folder / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path)
    # The last one is a link to a file that only its owner reads.
    stored = shutil.move(path, tmp_path_factory.mktemp("store") / "1.png")
    path.symlink_to(stored)
    path.chmod(0o600)
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
    options = ["--model", path, "--output", folder / "site"]
    assert exit_status(main, "web", *options, "--examples", examples) == 0
    return folder / "site"


@pytest.fixture(scope="module")
def seen(model, examples, site, browser, tmp_path_factory):
    """What visitors see, in the browser that npm brings."""
    folder = tmp_path_factory.mktemp("visit")
    options = ("--input", "uint8", "--logits")
    path = litert(model, folder, "bytes.tflite", *options)
    options = ["--model", path, "--output", folder / "next"]
    assert exit_status(main, "web", *options, "--examples", examples) == 0
    os.utime(folder / "next" / "index.html", (0, 0))  # dates do not decide
    served = Path(shutil.copytree(site, folder / "served"))
    shutil.copy(path, files(served))
    models = {"taken": mean_color, "refused": mixed_color, "foreign": double}
    for name, graph in models.items():
        content = tflite(graph, folder / name)
        (files(served) / f"{name}.tflite").write_bytes(content)
    link = folder / "link"
    link.symlink_to(served)
    with site_server(link, port=0) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        url = f"http://localhost:{running.server_port}/"
        ended = subprocess.run(
            ["node", browser / "visit.mjs", url, link, folder / "next"],
            capture_output=True,
            text=True,
            timeout=300,
        )
        running.shutdown()
    assert ended.returncode == 0, ended.stderr
    return {**json.loads(ended.stdout), "url": url}


def files(site):
    """The folder of a site's files, named after their content."""
    (folder,) = (path.parent for path in site.glob("*/site.json"))
    return folder


def tflite(graph, folder):
    module = tf.Module()
    tf.saved_model.save(module, folder, {"serving_default": graph})
    return tf.lite.TFLiteConverter.from_saved_model(str(folder)).convert()


@tf.function(input_signature=[tf.TensorSpec((1, 32, 48, 3), name="images")])
def mean_color(images):
    """A classifier that engines of GPUs take."""
    color = tf.reduce_mean(images, (1, 2)) / 255
    return {"probabilities": tf.nn.softmax(color @ KERNEL)}


@tf.function(input_signature=[tf.TensorSpec((1, 32, 48, 3), name="images")])
def mixed_color(images):
    """The same, with a product that engines of GPUs refuse."""
    rows = tf.reshape(images, (1, 32, -1))
    mixed = tf.matmul(np.eye(32, dtype="float32")[None], rows)
    return mean_color(tf.reshape(mixed, (1, 32, 48, 3)))


@tf.function(input_signature=[tf.TensorSpec((1, 4), name="x")])
def double(x):
    return {"y": 2 * x}


@pytest.fixture(scope="module")
def images_seen(examples):
    """The examples as the model sees them."""
    return np.stack(
        [
            resize_and_crop(keras_cait.load_image(path), (32, 48))
            for path in sorted(examples.rglob("*.png"))
        ]
    )


@pytest.fixture(scope="module")
def probabilities(model, images_seen):
    return model.predict(images_seen, verbose=0)


def assert_equal_keras(pages, probabilities):
    for page, expected in zip(pages, probabilities, strict=True):
        order = np.argsort(-expected)
        assert page["labels"] == [LABELS[i] for i in order]
        shares = [float(share.removesuffix(" %")) for share in page["shares"]]
        np.testing.assert_allclose(shares, 100 * expected[order], atol=0.1)


def test_the_page_matches_keras(seen, model, images_seen, probabilities):
    page = seen["cpu"]
    maps = np.asarray(keras_cait.class_attention_maps(model, images_seen))
    maps = np.mean(maps, axis=(1, 2)).reshape(len(maps), -1)
    assert page["messages"] == []
    assert page["isolated"]  # may use threads
    assert page["width"] == 390  # nothing is wider than a phone
    assert page["bidi"] == "plaintext"  # labels of any script
    assert_equal_keras(page["pages"], probabilities)
    for one in page["pages"]:
        assert one["time"].endswith(" ms on this device with WebAssembly")
    for file, outputs in page["outputs"].items():
        assert outputs["progress"] == 1
        found = [one["probabilities"] for one in outputs["examples"]]
        np.testing.assert_allclose(found, probabilities, atol=1e-3)
        found = [one["attention"] for one in outputs["examples"]]
        if file == "bytes.tflite":
            assert found == [None] * 3
        else:
            np.testing.assert_allclose(found, maps, atol=1e-3)


def test_webgpu_runs_what_it_takes_whole(seen, images_seen, probabilities):
    page = seen["gpu"]
    assert page["messages"] == []
    assert_equal_keras(page["pages"], probabilities)
    colors = np.mean(images_seen, axis=(1, 2)) / 255
    expected = softmax(colors @ KERNEL)
    engines = {
        "taken": ["WebGPU", "WebAssembly", "WebAssembly"],  # lost after one
        "refused": ["WebAssembly"] * 3,
    }
    for name, engine in engines.items():
        outputs = page[name]["examples"]
        assert [one["engine"] for one in outputs] == engine
        found = [one["probabilities"] for one in outputs]
        np.testing.assert_allclose(found, expected, atol=1e-3)


def test_examples_are_named(seen):
    for page in seen["cpu"]["pages"]:
        assert page["caption"] == f"Example: {page['name']}"
        best = f"{page['labels'][0]}, {page['shares'][0]}"
        assert page["status"] == f"{page['caption']}: {best}"
    names = [page["name"] for page in seen["cpu"]["pages"]]
    # After the folder where that is a class, otherwise after the file.
    assert names == ["plain", "small", "wide one"]


def test_the_visitor_sets_the_strength_of_the_heat_map(seen):
    assert seen["cpu"]["heatmap"]["opacity"] == ["0", "1"]
    low, high = seen["cpu"]["heatmap"]["reds"]
    assert high - low > 100


def test_only_the_address_is_shared(seen):
    assert seen["cpu"]["shared"] == seen["url"]


def test_what_is_no_image_is_explained(seen):
    text, *given = seen["cpu"]["images"]["errors"]
    assert text.startswith("This browser cannot read notes.txt")
    for svg, nothing in zip(given[::2], given[1::2], strict=True):
        assert svg.startswith("logo.svg is an SVG drawing") and "PNG" in svg
        assert nothing.startswith("That is not an image file.")
    assert "svg" not in seen["cpu"]["images"]["accept"]
    assert "*" not in seen["cpu"]["images"]["accept"]
    assert seen["cpu"]["images"]["ways"]


def test_a_wrong_model_is_explained(seen):
    models = seen["cpu"]["models"]
    for error, reason in {
        seen["damaged"]: "is damaged, or is not the model of this page.",
        seen["notFound"]: "site.json is damaged.",
        models["page.js"]: "is damaged, is not a .tflite model, or",
        models["foreign.tflite"]: "it takes x float32 (1, 4) instead of",
        models["model.tflite"]: "it has 5 classes and the page 4 labels",
    }.items():
        assert reason in error and "python -m export web" in error


def test_a_page_opened_from_a_file_asks_for_a_server(seen):
    assert "needs a web server" in seen["file"]
    assert "python3 -m http.server" in seen["file"]


def test_the_page_works_offline_in_one_version(seen):
    page = seen["offline"]
    assert page["reachable"] is False
    assert page["reloaded"] == ["lions", 5]
    assert page["next"] == page["nextReloaded"] == ["bytes", 5]
    versions = set()
    for others, urls in (page["kept"], page["nextKept"]):
        assert others == []
        root, *kept = sorted(url.removeprefix(seen["url"]) for url in urls)
        (version,) = {url.split("/")[0] for url in kept}
        names = {url.removeprefix(f"{version}/") for url in kept}
        assert root == ""
        assert {"page.js", "model.tflite", "examples/2.png"} <= names
        assert sum(name.endswith(".wasm") for name in names) == 1
        versions.add(version)
    assert len(versions) == 2


def test_a_site_is_whole_or_not_there(
    model, site, tmp_path, tmp_path_factory, monkeypatch, capsys
):
    parts = files(site)
    assert sorted(site.iterdir()) == sorted(
        [parts, site / "index.html", site / "service-worker.js"]
    )
    assert f'<base href="{parts.name}/" />' in (site / "index.html").read_text()
    assert (parts / "litert" / "wasm" / "litert_wasm_internal.wasm").exists()
    assert not list(parts.glob("package*")) + list(parts.glob("node_modules"))
    assert all(file.stat().st_mode & 0o004 for file in parts.rglob("*"))

    def refused(*arguments):
        assert exit_status(main, "web", *arguments) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert list(tmp_path.iterdir()) == []
        return error

    target, good = tmp_path / "site", parts / "model.tflite"
    output = ("--output", target)
    assert "no site" in refused(*output, "--serve")
    assert ".tflite files" in refused(*output, "--model", parts / "page.js")
    folder = tmp_path_factory.mktemp("batch")
    batch = litert(model, folder, "two.tflite", "--batch-size", "2")
    capsys.readouterr()
    assert "batch size 2" in refused(*output, "--model", batch)
    assert "exists" in refused("--output", site, "--model", good)
    drawing = folder / "logo.svg"
    drawing.touch()
    options = ("--model", good, "--examples", drawing)
    assert "cannot show" in refused(*output, *options)
    image = drawing.rename(folder / "image.png")
    options = ("--model", good, "--examples", image)
    assert "is not an image" in refused(*output, *options)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "npm" in refused(*output, "--model", good)
