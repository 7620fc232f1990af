"""`keras-cait`: what it prints, what it survives and what it refuses."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from PIL import Image

import keras_cait
from keras_cait import cli
from tests.helpers.commands import exit_status
from tests.helpers.models import randomise
from tests.helpers.reference import REFERENCE

IMAGES = REFERENCE / "preprocess"


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    return randomise(
        keras_cait.CaiT(24, 2, 2, 8, input_shape=(32, 48, 3), classes=5)
    )


@pytest.fixture(scope="module")
def weights(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "model.keras"
    model.save(path)
    return str(path)


@pytest.fixture
def folder(tmp_path):
    """Two images, one of them in a subfolder, a broken one, and a text."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    shutil.copy(IMAGES / "small_64x48.png", folder / "a.png")
    shutil.copy(IMAGES / "rgba_321x240.png", folder / "sub" / "a.PNG")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 broken")
    (folder / "notes.txt").write_text("not an image")
    return folder


def main(arguments):
    """The exit status of the command."""
    return exit_status(cli.main, *arguments)


def expected_scores(model, path):
    image = keras_cait.load_image(path)
    image = keras_cait.preprocessing.resize_and_crop(image, (32, 48))
    return keras.ops.convert_to_numpy(model(image[None]))[0]


@pytest.mark.parametrize("batch_size", ["1", "2", "8"])
def test_scores_of_files_and_folders(
    batch_size, model, weights, folder, capsys
):
    gray = IMAGES / "gray_300x221.png"
    arguments = [str(gray), str(folder), "--model", weights, "--json"]
    assert main([*arguments, "--batch-size", batch_size, "--top", "9"]) == 1
    output = capsys.readouterr()
    lines = [json.loads(line) for line in output.out.splitlines()]
    paths = [gray, folder / "a.png", folder / "sub" / "a.PNG"]
    assert [line["image"] for line in lines] == list(map(str, paths))
    for path, line in zip(paths, lines, strict=True):
        expected = expected_scores(model, path)
        best = [row["index"] for row in line["predictions"]]
        assert best == list(np.argsort(-expected))
        for row in line["predictions"]:
            assert row["score"] == pytest.approx(
                expected[row["index"]], abs=1e-5
            )
            assert row["label"] == str(row["index"])
    assert len(output.err.splitlines()) == 1  # no progress off a terminal
    assert "skipped: " in output.err and "broken.jpg" in output.err


def test_table_with_bars_and_labels(weights, tmp_path, capsys):
    labels = tmp_path / "labels.txt"
    labels.write_text("one\ntwo\nthree\nvier\nfünf\n", encoding="utf-8")
    image = str(IMAGES / "small_64x48.png")
    arguments = [image, "--model", weights, "--labels", str(labels)]
    assert main([*arguments, "--top", "2"]) == 0
    name, first, second = capsys.readouterr().out.splitlines()
    assert name == image
    score, bar, label = first.split()
    assert float(score.rstrip("%")) > 20 and label in "one two three vier fünf"
    assert len(bar) == round(float(score.rstrip("%")) / 5) and set(bar) == {"█"}
    assert first.index(label) == second.index(second.split()[-1])


def test_csv(weights, tmp_path, capsys):
    image = tmp_path / 'odd, "name".png'
    shutil.copy(IMAGES / "small_64x48.png", image)
    assert main([str(image), "--model", weights, "--csv", "--top", "3"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["rank"] for row in rows] == ["1", "2", "3"]
    assert {row["image"] for row in rows} == {str(image)}
    assert float(rows[0]["score"]) >= float(rows[1]["score"])


def test_imagenet_names(tmp_path, capsys):
    """Names and identifiers of ImageNet's classes, from a weights file."""
    model = keras_cait.CaiT(24, 1, 2, 8, input_shape=(32, 32, 3))
    path = tmp_path / "model.safetensors"
    keras_cait.save_weights(model, path)
    image = str(IMAGES / "small_64x48.png")
    arguments = [image, "--model", str(path), "--image-size", "64", "--json"]
    assert main(arguments) == 0
    (best, *_) = json.loads(capsys.readouterr().out)["predictions"]
    labels = keras_cait.preprocessing.imagenet_labels()
    assert (best["wordnet_id"], best["label"]) == labels[best["index"]]


def test_labels_beside_the_model(weights, tmp_path, capsys):
    shutil.copy(weights, tmp_path)
    (tmp_path / "labels.txt").write_text("a\nb\nc\nd\ne\n")
    image = str(IMAGES / "small_64x48.png")
    assert main([image, "--model", str(tmp_path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["predictions"]
    assert all(row["label"] == "abcde"[row["index"]] for row in rows)


def test_output_is_a_new_file(weights, folder, tmp_path, capsys):
    output = tmp_path / "results" / "photos.csv"
    arguments = [str(folder), "--model", weights, "--csv"]
    assert main([*arguments, "--output", str(output)]) == 1  # one is skipped
    assert capsys.readouterr().out == ""
    before = output.read_text(encoding="utf-8")
    assert main(arguments) == 1
    assert capsys.readouterr().out == before
    assert main([*arguments, "--output", str(output)]) == 1
    assert "already exists" in capsys.readouterr().err
    assert list(output.parent.iterdir()) == [output]


@pytest.mark.parametrize("kind", ["--csv", "--json", "--top=1"])
def test_output_holds_file_names_that_are_not_utf_8(kind, weights, tmp_path):
    image = os.fsdecode(os.fsencode(tmp_path / "caf") + b"\xe9.png")
    shutil.copy(IMAGES / "small_64x48.png", image)
    output = tmp_path / "results.txt"
    arguments = [image, "--model", weights, kind, "--output", str(output)]
    assert main(arguments) == 0
    assert "caf\\udce9.png" in output.read_text(encoding="utf-8")


def test_of_equal_scores_the_first_is_best():
    scores, names = np.array([0.2, 0.4, 0.4]), [("", name) for name in "abc"]
    assert [one.label for one in cli.best(scores, names, 2)] == ["b", "c"]


def test_the_table_does_not_control_the_terminal(capsys):
    cat = cli.Prediction(0, "", "\x1b]0;cat\x07 می\u200cرود", 0.5)
    cli.TableWriter(sys.stdout).write(Path("a\x1b[2J  b\nc.png"), [cat])
    path, line = capsys.readouterr().out.splitlines()
    assert path == "a?[2J  b?c.png"
    assert line.endswith("  ?]0;cat? می\u200cرود")


def test_image_on_standard_input(weights, capsys, monkeypatch):
    for data, status in (
        ((IMAGES / "small_64x48.png").read_bytes(), 0),
        (b"", 1),
    ):
        monkeypatch.setattr(
            sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data))
        )
        assert main(["-", "--model", weights]) == status
    assert (
        "skipped: standard input: The source (0 bytes)"
        in capsys.readouterr().err
    )


def test_attention_is_drawn_and_never_replaced_silently(
    weights, folder, tmp_path, capsys
):
    image, drawn = str(folder / "a.png"), tmp_path / "attention.png"
    arguments = [image, "--model", weights, "--attention"]
    assert main([*arguments, str(drawn)]) == 0
    assert np.ptp(np.asarray(Image.open(drawn).convert("L"))) > 100
    os.utime(drawn, (0, 0))
    before = drawn.stat().st_mtime_ns
    assert main([*arguments, str(drawn)]) == 1
    assert "already exists. Choose another path" in capsys.readouterr().err
    assert drawn.stat().st_mtime_ns == before
    assert main([*arguments, str(drawn), "--force"]) == 0
    assert drawn.stat().st_mtime_ns > before

    figures = tmp_path / "figures"
    arguments = [str(folder), "--model", weights, "--attention", str(figures)]
    assert main(arguments) == 1  # an image is broken
    found = sorted(str(p.relative_to(figures)) for p in figures.rglob("*.png"))
    assert found == ["a.png.png", "sub/a.PNG.png"]
    capsys.readouterr()
    assert main(arguments) == 1
    assert capsys.readouterr().err.count("not replaced without --force") == 2


def test_images_of_one_name_do_not_share_a_figure(
    weights, folder, tmp_path, capsys
):
    shutil.copy(folder / "a.png", folder / "sub" / "a.png")
    images = [str(folder / "a.png"), str(folder / "sub" / "a.png")]
    figures = tmp_path / "figures"
    arguments = ["--model", weights, "--attention", str(figures), "--force"]
    assert main([*images, *arguments]) == 1
    error = capsys.readouterr().err
    assert all(repr(image) in error for image in images)
    assert not figures.exists()
    assert main([images[0], images[0], *arguments]) == 0


def test_progress_of_a_folder_on_a_terminal(
    weights, folder, capsys, monkeypatch
):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    main([str(folder), "--model", weights, "--batch-size", "1"])
    output = capsys.readouterr()
    assert "2 images, " in output.err and "images" not in output.out


def test_a_folder_is_read_batch_by_batch(model, weights, folder, monkeypatch):
    """The first batch is printed before the second one is read."""
    events = []
    for name in ("load_image", "best"):
        function = getattr(cli, name)
        monkeypatch.setattr(
            cli,
            name,
            lambda *a, function=function, name=name: (
                events.append(name) or function(*a)
            ),
        )
    (folder / "broken.jpg").unlink()
    shutil.copy(folder / "a.png", folder / "b.png")
    assert main([str(folder), "--model", weights, "--batch-size", "2"]) == 0
    first_batch = ["load_image", "load_image", "best", "best"]
    assert events == [*first_batch, "load_image", "best"]


def test_as_a_process(weights, folder):
    """Output and exit status, with a terminal that only has ASCII."""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    environment.pop("TF_CPP_MIN_LOG_LEVEL")
    done = subprocess.run(
        [sys.executable, "-m", "keras_cait", folder, "--model", weights],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 2 * 6 and "####" in done.stdout
    assert "broken.jpg" in done.stderr.splitlines()[-1]
    assert "cpu_feature_guard" not in done.stderr
