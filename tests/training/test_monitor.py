"""What a run shows: speed, the line, TensorBoard."""

import dataclasses
import io
import re
import shlex
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from cyclopts import App

import keras_cait.cli
import training.loop.progress as progress
from export.__main__ import app as export_app
from training import diagnose, evaluate, figures, report_sections
from training.loop.history import History, read_history
from training.loop.progress import Meter, ProgressLine
from training.loop.tensorboard import TensorBoard
from training.recipes import FINETUNE, QUICKSTART
from training.train import make_command

RECIPE = dataclasses.replace(
    QUICKSTART, global_batch_size=50, epochs=10, evaluation_epochs=1
)


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is advanced."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])

    def advance(seconds):
        now[0] += seconds

    yield advance


def test_time_left_counts_neither_compilation_nor_pauses(clock):
    meter = Meter(RECIPE, 4, validation_images=100)
    with meter.waiting():
        clock(1000)  # compiles
    start = meter.at(1)
    for _ in range(3):
        with meter.waiting():
            clock(0.5)
        clock(1.5)
    meter.pause()
    with meter.evaluating():
        clock(500)  # compiles
    with meter.waiting():
        clock(0)
    speed = meter.speed(start, meter.at(4))
    assert speed == {"images_per_second": 25.0, "data_wait": 0.25}
    # 36 steps of 50 images and 9 evaluations of 100 images.
    assert meter.seconds_left(4, 25.0) == 72 + 36
    with meter.evaluating():
        clock(7)
    assert meter.seconds_left(8, 25.0) == 64 + 8 * 7
    assert meter.speed(start, start)["images_per_second"] != 0  # not a number


@pytest.mark.filterwarnings("error")
def test_lines_of_a_log_and_of_a_terminal(monkeypatch, capsys):
    with ProgressLine() as line:
        line.live.console.is_jupyter = True  # where rich asks for widgets
        line.show("compiling")
        line.show("step 1")
        line.keep("epoch 1")
    assert capsys.readouterr().out == "compiling\nepoch 1\n"

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with pytest.raises(KeyboardInterrupt), ProgressLine() as line:
        line.show("step 1")
        print("in between")
        line.show("step 2")
        line.keep("epoch 1")
        raise KeyboardInterrupt
    text = terminal.getvalue()
    assert re.findall(r"in between|(?:step|epoch) \d", text) == [
        *("step 1", "in between", "step 1", "step 2", "epoch 1"),
    ]
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor


def test_a_history_with_fewer_columns_is_continued(tmp_path):
    path = tmp_path / "history.csv"
    path.write_text(
        "epoch,loss,accuracy,val_accuracy\n0,2.0,0.5,NA\n1,1.0,0.6,0.7\n"
    )
    History(path, 1).add(1, {"loss": 1.5, "accuracy": 0.5, "val_loss": 0.25})
    first, second = read_history(path)
    assert (first["loss"], first["val_loss"]) == ("2.0", "NA")
    assert (second["loss"], second["val_accuracy"]) == ("1.5", "NA")
    assert second["val_loss"] == "0.25"


def test_resumed_curves_do_not_go_back(tmp_path):
    values = dict.fromkeys(
        ["loss", "accuracy", "learning_rate", "gradient_norm"], 1.0
    ) | {"images_per_second": float("nan"), "data_wait": float("nan")}

    def write(first, last):
        board = TensorBoard(tmp_path, first, 10)
        for step in range(first + 1, last + 1):
            board.add_step(step, values)
        board.add_epoch(last, {"loss": 1.0, "val_loss": 2.0})

    write(0, 7)
    (cut,) = (tmp_path / "train").iterdir()
    cut.write_bytes(cut.read_bytes()[:-3])  # its last point, of step 7
    time.sleep(1)  # event files are named after the second
    write(4, 10)
    steps = {
        name: [
            event.step
            for path in sorted((tmp_path / name).iterdir())
            for event in tf.compat.v1.train.summary_iterator(str(path))
            for value in event.summary.value
            if value.tag in ("loss/step", "loss/epoch")
        ]
        for name in ("train", "validation")
    }
    assert steps == {"train": [*range(1, 11), 10], "validation": [10]}


def test_commands_of_the_report_are_complete(tmp_path):
    apps = {
        "keras_cait": keras_cait.cli.app,
        "training.evaluate": evaluate.app,
        "training.diagnose": diagnose.app,
        "training.train": App(),
    }
    apps["training.train"].default(make_command(FINETUNE))
    recipe = dataclasses.asdict(FINETUNE) | {"data": "folder:my photos"}
    for parts in report_sections.commands(tmp_path / "a run", recipe).values():
        python, _, module, *arguments = shlex.split(" ".join(parts))
        assert python == "python"
        if module == "training.train":
            assert arguments.pop(0) == str(tmp_path / "a run/recipe.json")
        apps.pop(module, export_app).parse_args(
            arguments, exit_on_error=False, print_error=False
        )
    assert not apps  # each was there


@pytest.mark.filterwarnings("error")  # of missing glyphs, of too little room
@pytest.mark.parametrize(
    "labels", [["b_$x^{$", "$1"], ["猫", "狗"], ["a" * 60, "b" * 60]]
)
def test_figures_take_every_label(labels):
    drawings = [
        figures.confusion_matrix(np.eye(2, dtype=int), labels),
        figures.gallery([np.zeros((2, 4, 8, 3), "uint8")], labels),
    ]
    for drawing in drawings:
        figures.pixels(drawing)  # stops at a formula with a mistake
    assert figures.pixels(drawings[1]).shape == (102, 250, 4)
