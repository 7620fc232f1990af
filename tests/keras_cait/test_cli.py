"""`python -m keras_cait`: what it prints, what it survives, what it refuses."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from PIL import Image

import keras_cait
from keras_cait.__main__ import main
from tests.helpers.models import randomise
from tests.helpers.reference import REFERENCE

PICTURES = REFERENCE / "preprocess"


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
    """Two pictures, one of them in a subfolder, one broken, and a text."""
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    shutil.copy(PICTURES / "small_64x48.png", folder / "a.png")
    shutil.copy(PICTURES / "rgba_321x240.png", folder / "sub" / "a.PNG")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 broken")
    (folder / "notes.txt").write_text("no picture")
    return folder


def expected_scores(model, path):
    image = keras_cait.load_image(path)
    image = keras_cait.preprocessing.resize_and_crop(image, (32, 48))
    return keras.ops.convert_to_numpy(model(image[None]))[0]


@pytest.mark.parametrize("batch_size", ["1", "2", "8"])
def test_scores_of_files_and_folders(
    batch_size, model, weights, folder, capsys
):
    gray = PICTURES / "gray_300x221.png"
    arguments = [str(gray), str(folder), "--weights", weights, "--json"]
    assert main([*arguments, "--batch-size", batch_size, "--top", "9"]) == 1
    output = capsys.readouterr()
    answers = [json.loads(line) for line in output.out.splitlines()]
    paths = [gray, folder / "a.png", folder / "sub" / "a.PNG"]
    assert [answer["picture"] for answer in answers] == list(map(str, paths))
    for path, answer in zip(paths, answers, strict=True):
        expected = expected_scores(model, path)
        best = [row["index"] for row in answer["predictions"]]
        assert best == list(np.argsort(-expected))
        for row in answer["predictions"]:
            assert row["score"] == pytest.approx(
                expected[row["index"]], abs=1e-5
            )
            assert row["label"] == str(row["index"])
    assert len(output.err.splitlines()) == 1  # no progress off a terminal
    assert "skipped: " in output.err and "broken.jpg" in output.err


def test_table_with_bars_and_labels(weights, tmp_path, capsys):
    labels = tmp_path / "labels.txt"
    labels.write_text("one\ntwo\nthree\nvier\nfünf\n", encoding="utf-8")
    picture = str(PICTURES / "small_64x48.png")
    arguments = [picture, "--weights", weights, "--labels", str(labels)]
    assert main([*arguments, "--top", "2"]) == 0
    name, first, second = capsys.readouterr().out.splitlines()
    assert name == picture
    score, bar, label = first.split()
    assert float(score.rstrip("%")) > 20 and label in "one two three vier fünf"
    assert len(bar) == round(float(score.rstrip("%")) / 5) and set(bar) == {"█"}
    assert first.index(label) == second.index(second.split()[-1])


def test_csv(weights, tmp_path, capsys):
    picture = tmp_path / 'odd, "name".png'
    shutil.copy(PICTURES / "small_64x48.png", picture)
    assert (
        main([str(picture), "--weights", weights, "--csv", "--top", "3"]) == 0
    )
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["rank"] for row in rows] == ["1", "2", "3"]
    assert {row["picture"] for row in rows} == {str(picture)}
    assert float(rows[0]["score"]) >= float(rows[1]["score"])


def test_variant_with_imagenets_labels(tmp_path, capsys, monkeypatch):
    """The names of a variant's classes; the model itself is a small one."""

    def small_variant(weights, input_shape):
        assert (weights, input_shape) == ("imagenet", (64, 64, 3))
        return keras_cait.CaiT(24, 1, 2, input_shape=input_shape)

    monkeypatch.setattr(keras_cait, "CaiT_XS24", small_variant)
    picture = str(PICTURES / "small_64x48.png")
    arguments = [picture, "--variant", "XS24", "--size", "64", "--json"]
    assert main(arguments) == 0
    (best, *_) = json.loads(capsys.readouterr().out)["predictions"]
    labels = keras_cait.preprocessing.imagenet_labels()
    assert (best["wordnet_id"], best["label"]) == labels[best["index"]]


@pytest.mark.parametrize(
    "options",
    [{"classifier_activation": None}, {"include_preprocessing": False}],
)
def test_models_with_logits_or_without_preprocessing(
    options, model, tmp_path, capsys
):
    other = keras_cait.CaiT.from_config({**model.get_config(), **options})
    other.set_weights(model.get_weights())
    other.save(tmp_path / "other.keras")
    picture = PICTURES / "small_64x48.png"
    weights = str(tmp_path / "other.keras")
    assert main([str(picture), "--weights", weights, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["predictions"]
    expected = expected_scores(model, picture)
    for row in rows:
        assert row["score"] == pytest.approx(expected[row["index"]], abs=1e-5)


def test_picture_on_standard_input(weights, capsys, monkeypatch):
    for data, status in (
        ((PICTURES / "small_64x48.png").read_bytes(), 0),
        (b"", 1),
    ):
        monkeypatch.setattr(
            sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data))
        )
        assert main(["-", "--weights", weights]) == status
    assert "skipped: standard input: 0 bytes is not" in capsys.readouterr().err


def test_attention_is_drawn_and_never_replaced_silently(
    weights, folder, tmp_path, capsys
):
    picture, drawn = str(folder / "a.png"), tmp_path / "attention.png"
    arguments = [picture, "--weights", weights, "--attention"]
    assert main([*arguments, str(drawn)]) == 0
    assert np.ptp(np.asarray(Image.open(drawn).convert("L"))) > 100
    os.utime(drawn, (0, 0))
    before = drawn.stat().st_mtime_ns
    assert main([*arguments, str(drawn)]) == 2
    assert "exists already. Choose another path" in capsys.readouterr().err
    assert drawn.stat().st_mtime_ns == before
    assert main([*arguments, str(drawn), "--force"]) == 0
    assert drawn.stat().st_mtime_ns > before

    figures = tmp_path / "figures"
    arguments = [str(folder), "--weights", weights, "--attention", str(figures)]
    assert main(arguments) == 1  # a picture is broken
    found = sorted(str(p.relative_to(figures)) for p in figures.rglob("*.png"))
    assert found == ["a.png.png", "sub/a.PNG.png"]
    capsys.readouterr()
    assert main(arguments) == 1
    assert capsys.readouterr().err.count("not replaced without --force") == 2


def test_progress_of_a_folder_on_a_terminal(
    weights, folder, capsys, monkeypatch
):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    main([str(folder), "--weights", weights, "--batch-size", "1"])
    output = capsys.readouterr()
    assert "2 pictures, " in output.err and "pictures" not in output.out


def test_a_folder_is_read_batch_by_batch(model, weights, folder, monkeypatch):
    """No second batch is read before the first one is printed."""
    from keras_cait import __main__ as command

    events = []
    for name in ("load_image", "classify"):
        function = getattr(command, name)
        monkeypatch.setattr(
            command,
            name,
            lambda *a, function=function, name=name: (
                events.append(name) or function(*a)
            ),
        )
    (folder / "broken.jpg").unlink()
    shutil.copy(folder / "a.png", folder / "b.png")
    assert main([str(folder), "--weights", weights, "--batch-size", "2"]) == 0
    assert events == ["load_image"] * 2 + ["classify", "load_image", "classify"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["missing.png"], "no file or folder 'missing.png'"),
        (["empty"], "no pictures in the folder 'empty'"),
        (["-", "-"], "only once"),
        (["a.png", "--weights", "missing.keras"], "no file with weights at"),
        (["a.png", "--weights", "text.keras"], "Cannot load a model from"),
        (["a.png", "--weights", "headless.keras"], "needs a CaiT with a head"),
        (["a.png", "--weights", "dense.keras"], "holds a Sequential, but"),
        (["a.png", "--weights", "gray.keras"], "needs RGB of one size"),
        (["a.png", "--weights", "text.weights.h5"], "text.weights.h5"),
        (["a.png", "--size", "100"], "multiples of patch_size=16"),
        (["a.png", "--size", "0"], "--size must be at least 1"),
        (["a.png", "--top", "0"], "--top must be at least 1"),
        (["a.png", "--batch-size", "-1"], "--batch-size must be at least 1"),
        (
            ["a.png", "--weights", "MODEL", "--variant", "S24"],
            "--variant and --size cannot be chosen",
        ),
        (
            ["a.png", "--weights", "MODEL", "--labels", "two.txt"],
            "has 2 lines, but the model has 5 classes",
        ),
        (
            ["a.png", "--weights", "MODEL", "--labels", "missing.txt"],
            "Cannot read --labels 'missing.txt'",
        ),
        (
            ["a.png", "--weights", "MODEL", "--labels", "a.png"],
            "Cannot read --labels 'a.png'",
        ),
        (["a.png", "a.png", "--attention", "x.png"], "one picture only"),
        ([".", "--attention", "x.png"], "one picture only"),
        (["a.png", "--attention", "two.txt"], "neither a folder nor a file"),
        (["a.png", "--attention", "none/x.png"], "Cannot write --attention"),
        (["a.png", "--attention", "a.png/x"], "Not a directory"),
    ],
)
def test_one_line_and_status_2(
    arguments, message, weights, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    shutil.copy(PICTURES / "small_64x48.png", "a.png")
    os.mkdir("empty")
    for name in ("text.keras", "text.weights.h5", "two.txt"):
        with open(name, "w") as file:
            file.write("one\ntwo\n")
    small = {"input_shape": (32, 32, 3), "pooling": "token"}
    if "headless.keras" in arguments:
        keras_cait.CaiT(8, 1, 1, include_top=False, **small).save(arguments[-1])
    if "gray.keras" in arguments:
        keras_cait.CaiT(8, 1, 1, input_shape=(32, 32, 1)).save(arguments[-1])
    if "dense.keras" in arguments:
        keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)]).save(
            arguments[-1]
        )
    arguments = [weights if a == "MODEL" else a for a in arguments]
    if "text.weights.h5" in arguments:
        arguments += ["--variant", "XXS24"]
    assert main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    (line,) = output.err.splitlines()
    assert line.startswith("keras_cait: error: ") and message in line


def test_as_a_process(weights, folder):
    """Output and exit status, also where only ASCII can be printed."""
    done = subprocess.run(
        [sys.executable, "-m", "keras_cait", folder, "--weights", weights],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 2 * 6 and "####" in done.stdout
    assert "broken.jpg" in done.stderr.splitlines()[-1]
