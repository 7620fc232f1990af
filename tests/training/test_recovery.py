"""What goes wrong in a run of one process, and how it resumes."""

import dataclasses
import json
import re
import shutil
import signal
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from cyclopts import App

import training.data.datasets as datasets
import training.data.pipeline as pipeline
import training.loop.model as models
import training.loop.tensorboard as tensorboard
import training.report as report
from keras_cait.command_line import run
from tests.helpers.run_training import TINY, build, noise, troubled
from tests.helpers.runs import assert_bit_equal, read_state
from training.loop.interruption import StopSignal
from training.train import train

DROPPING = dataclasses.replace(TINY, epochs=2, drop_path_rate=0.2)  # 8 steps


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    """Runs without most of what other tests look at."""
    monkeypatch.setattr(tensorboard, "IMAGES", 1)
    monkeypatch.setattr(report, "write_report", lambda folder: folder)


@pytest.fixture
def trouble(monkeypatch):
    """Small runs, and a function that lets something happen in the next."""
    monkeypatch.setattr(datasets, "load", noise)
    monkeypatch.setattr(models, "build", build)
    batches = pipeline.training_data

    def prepare(*trouble):
        monkeypatch.setattr(
            pipeline,
            "training_data",
            lambda *arguments: troubled(*arguments, trouble=trouble),
        )

    yield prepare
    monkeypatch.setattr(pipeline, "training_data", batches)


def test_signals_save_the_step_under_way(trouble, tmp_path, capsys):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    app = App()
    app.default(lambda folder: train(DROPPING, Path(folder)))
    train(DROPPING, whole)
    # The last step of an epoch ends with the epoch.
    for step, name, done in ((2, "SIGTERM", 3), (7, "SIGINT", 8)):
        trouble(step, name)
        with pytest.raises(SystemExit) as end:
            run(app, [str(stopped)])
        assert end.value.code == 130
        said = f"Stopped and saved at step {done}. Run the same command again"
        assert said in capsys.readouterr().err
    train(DROPPING, stopped)
    assert_bit_equal(read_state(stopped), read_state(whole))
    rows = (stopped / "history.csv").read_text().splitlines()
    assert len(rows) == 1 + DROPPING.epochs
    model = keras.models.load_model(stopped / "model.keras")
    assert model.get_config()["frozen"] == []  # also of EMA weights


def test_a_signal_after_the_last_step_ends_the_command():
    """The next fold of a cross-validation does not start."""
    before = signal.getsignal(signal.SIGTERM)
    with (
        pytest.raises(KeyboardInterrupt, match="after the run was finished"),
        StopSignal() as stop,
    ):
        signal.raise_signal(signal.SIGTERM)
        assert stop.received
    assert signal.getsignal(signal.SIGTERM) is before


def test_loss_that_is_not_finite_stops_before_it_is_saved(trouble, tmp_path):
    trouble(5, "not_a_number")
    message = re.escape(
        "not finite at step 5, in epoch 2. The last good checkpoint is "
        f"{tmp_path / 'checkpoints' / 'ckpt-5'}"
    )
    with pytest.raises(FloatingPointError, match=message):
        train(DROPPING, tmp_path, checkpoint_steps=5)
    state = read_state(tmp_path)
    assert state["step"] == 5
    assert all(np.isfinite(value).all() for value in state.values())


def test_a_diverged_model_ends_the_run_though_it_skips_steps(trouble, tmp_path):
    recipe = dataclasses.replace(
        DROPPING, learning_rate=1e30, on_nonfinite="skip"
    )
    with pytest.raises(FloatingPointError, match="validation loss is not"):
        train(recipe, tmp_path)
    assert not (tmp_path / "model.keras").exists()


def test_run_that_the_disk_cannot_hold_is_refused(
    trouble, tmp_path, monkeypatch
):
    usage = shutil.disk_usage(tmp_path)._replace(free=50_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(ValueError, match=f"{tmp_path} has 0.0 GB free"):
        train(DROPPING, tmp_path / "new" / "run")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def images(tmp_path):
    """A folder of 48 JPEGs for training and 12 for validation, two classes."""
    folder = tmp_path / "images"
    pixels = np.random.default_rng(0).integers(0, 256, (30, 28, 28, 3), "uint8")
    for name in ("cat", "dog"):
        for split, numbers in (("train", range(24)), ("validation", range(6))):
            (folder / split / name).mkdir(parents=True)
            for number in numbers:
                tf.io.write_file(
                    f"{folder / split / name / str(number)}.jpg",
                    tf.io.encode_jpeg(pixels[number]),
                )
    return folder


def test_unreadable_images_are_named_and_skipped(images, tmp_path, capsys):
    recipe = dataclasses.replace(
        DROPPING, data=f"folder:{images}", max_unreadable=2, epochs=3
    )
    cats = images / "train" / "cat"
    bad = [cats / "3.jpg", cats / "4.jpg"]  # neighbors
    for file in bad:
        file.write_bytes(file.read_bytes()[:200])
    train(recipe, tmp_path / "whole")
    said = capsys.readouterr().out
    for file in bad:
        assert said.count(f"Skipping an unreadable image: {file}\n") == 1
    summary = json.loads((tmp_path / "whole/summary.json").read_text())
    assert sorted(summary["unreadable"]) == [str(file) for file in bad]

    # Resumes from the first epoch, knowing what was found later.
    shutil.copytree(tmp_path / "whole", tmp_path / "halves")
    for later in (tmp_path / "halves" / "checkpoints").rglob("ckpt-[3-9]*"):
        later.unlink()
    (tmp_path / "halves" / "model.keras").unlink()
    train(recipe, tmp_path / "halves")
    assert_bit_equal(
        read_state(tmp_path / "halves"), read_state(tmp_path / "whole")
    )

    (tmp_path / "too_many").mkdir()
    batches = pipeline.training_data(
        recipe,
        tf.distribute.get_strategy(),
        datasets.load(recipe.data, "train"),
        0,
        tmp_path / "too_many",
    )
    next(batches)
    record = tmp_path / "too_many" / "unreadable.json"
    record.write_text('{"99": 0}')  # by another worker
    with pytest.raises(ValueError, match="3 images cannot be read, more"):
        list(batches)
    noted = json.loads(record.read_text())
    assert noted.pop("99") == 0
    assert len(noted) <= recipe.max_unreadable


def test_unreadable_validation_image_is_named(images, tmp_path):
    recipe = dataclasses.replace(DROPPING, data=f"folder:{images}")
    bad = images / "validation" / "dog" / "1.jpg"
    bad.write_bytes(b"not an image")
    with pytest.raises(
        ValueError, match=f"cannot be read.*{re.escape(str(bad))}"
    ):
        train(recipe, tmp_path / "run")
