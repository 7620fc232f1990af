"""Ctrl-C and SIGTERM at any moment: one line, nothing half-written."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from keras_cait.loading import load_classifier
from tests.helpers.workspace import OF_LIBRARIES, write_workspace

ROOT = Path(__file__).parents[2]
MOMENTS = 5
COMMANDS = {
    "train": "training.train quickstart --data folder:photos --output new "
    "--depth 1 --embed-dim 8 --num-heads 1 --class-attention-depth 1 "
    "--global-batch-size 10 --mixing-batch-size 10 --epochs 8",
    "evaluate": "training.evaluate --model small.keras --data folder:photos "
    "--output new",
    "saved-model": "export saved-model --model small.keras --labels five.txt "
    "--output new",
    "predict": "export predict --model small.keras --labels five.txt "
    "--input photos --output new --part-size 5 --resume",
    "litert": "export litert --model small.keras --labels five.txt "
    "--output new.tflite",
}
RESUMABLE = {"train", "evaluate", "predict"}


@pytest.fixture
def workspace(tmp_path):
    write_workspace(tmp_path)
    return tmp_path


def start(command, folder):
    return subprocess.Popen(
        [sys.executable, "-m", *COMMANDS[command].split()],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def assert_whole_or_absent(command, folder):
    """What a run leaves after a signal; a run that is resumed leaves more."""
    hidden = [path.name for path in folder.rglob(".*")]
    assert not hidden  # neither locks nor unfinished files
    if command == "saved-model" and (folder / "new").exists():
        load_classifier(folder / "new")
        assert (folder / "new" / "compose.yaml").exists()
    if command == "litert" and (folder / "new.tflite").exists():
        load_classifier(folder / "new.tflite")


@pytest.mark.large
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", COMMANDS)
def test_signals_at_any_moment(command, number, workspace):
    begin = time.monotonic()
    process = start(command, workspace)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    duration = time.monotonic() - begin
    expected = outputs(workspace)
    remove(workspace)

    seeded = random.Random(f"{command} {number}")
    for moment in range(MOMENTS):
        process = start(command, workspace)
        time.sleep((moment + seeded.random()) / MOMENTS * duration)
        process.send_signal(number)
        _, err = process.communicate(timeout=300)
        assert_whole_or_absent(command, workspace)
        lines = [x for x in err.splitlines() if not OF_LIBRARIES.match(x)]
        if process.returncode in (0, -number):  # done, while Python ended
            assert outputs(workspace) == expected
            assert not lines
        else:
            # Training completes its step, and ends as after Ctrl-C.
            status = 130 if "Stopped and saved" in err else 128 + number
            assert (process.returncode, len(lines)) == (status, 1), err
        is_done = outputs(workspace) == expected
        if is_done or command not in RESUMABLE:
            remove(workspace)

    if outputs(workspace) != expected:
        process = start(command, workspace)
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        assert outputs(workspace) == expected


def outputs(folder):
    """Names of the files that a command promises."""
    names = (
        *("new.tflite", "new/1/manifest.json", "new/compose.yaml"),
        *("new/model.keras", "new/summary.json", "new/table.md"),
        "new/folder_photos_small_keras_float32.json",
        *(f"new/part-{number:05d}.parquet" for number in range(5)),
    )
    return {name for name in names if (folder / name).exists()}


def remove(folder):
    (folder / "new.tflite").unlink(missing_ok=True)
    shutil.rmtree(folder / "new", ignore_errors=True)
