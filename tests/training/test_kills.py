"""Runs killed at random times, and damaged newest checkpoints.

However a run is killed, the same command ends with the same numbers, bit for
bit.
"""

import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.helpers.processes import Processes
from tests.helpers.runs import assert_bit_equal, read_state

pytestmark = pytest.mark.large  # dozens of processes: minutes

LONG = {"epochs": 150, "drop_path_rate": 0.2}  # 600 steps
SHORT = {"epochs": 5, "drop_path_rate": 0.2}  # 20 steps
KILLS = 10


@pytest.mark.parametrize(
    ("strategy", "workers"), [("one", 1), ("mirrored", 1), ("workers", 2)]
)
def test_killed_at_random_times(strategy, workers, tmp_path):
    processes = Processes(tmp_path)
    processes.complete(strategy, {"whole": LONG}, workers)
    draw = random.Random(0)
    reached = [0]
    while len(reached) <= KILLS:
        running = processes.run(strategy, {"killed": LONG}, workers, timeout=20)
        # Some while they start, the others while they train and save.
        starts = draw.random() < 0.2
        while "memory per device" not in processes.log() or not (
            starts or newest(tmp_path / "killed") > reached[-1]
        ):
            assert running[0].poll() is None, processes.log()
            time.sleep(0.05)
        time.sleep(draw.uniform(0, 2))
        killed = draw.choice(running)
        killed.send_signal(signal.SIGKILL)
        processes.ended(running)
        assert killed.returncode == -signal.SIGKILL, "LONG is too short."
        reached.append(newest(tmp_path / "killed"))
    processes.complete(strategy, {"killed": LONG}, workers)
    print(f"{strategy}: killed after the checkpoints of steps {reached[1:]}")
    assert_bit_equal(processes.state("killed"), processes.state("whole"))


def newest(run):
    """The step of a run's newest checkpoint."""
    files = (run / "checkpoints").glob("ckpt-*.index")
    return max((int(file.stem[5:]) for file in files), default=0)


def test_killed_while_a_checkpoint_is_written(tmp_path):
    processes = Processes(tmp_path)
    killed = SHORT | {"trouble": [13, "killed_while_saving"]}
    statuses = processes.ended(
        processes.run("one", {"whole": SHORT, "killed": killed})
    )
    assert statuses == [-signal.SIGXFSZ], processes.log()
    checkpoints = tmp_path / "killed" / "checkpoints"
    (part,) = checkpoints.rglob("ckpt-*_temp/*")
    assert part.stat().st_size == 20_000
    last = checkpoints / f"ckpt-{newest(tmp_path / 'killed')}"
    processes.complete("one", {"killed": SHORT})
    assert f"from {last}" in processes.log()
    assert not list(checkpoints.rglob("*_temp"))
    assert_bit_equal(processes.state("killed"), processes.state("whole"))


def cut(index, data):
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])


def flip(index, data):
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)


def delete(index, data):
    data.unlink()


def delete_index(index, data):
    index.unlink()


@pytest.mark.parametrize("damage", [cut, flip, delete, delete_index])
def test_the_checkpoint_before_a_damaged_one_is_used(damage, tmp_path):
    processes = Processes(tmp_path)
    killed = SHORT | {"trouble": [11, "SIGKILL"]}
    statuses = processes.ended(
        processes.run("one", {"whole": SHORT, "killed": killed})
    )
    assert statuses == [-signal.SIGKILL]
    checkpoints = tmp_path / "killed" / "checkpoints"
    step = newest(tmp_path / "killed")  # 10, or 8 while that was written
    damage(
        checkpoints / f"ckpt-{step}.index",
        checkpoints / f"ckpt-{step}.data-00000-of-00001",
    )
    processes.complete("one", {"killed": SHORT})
    log = processes.log()
    if damage is not delete_index:  # without its index it is no checkpoint
        damaged = checkpoints / f"ckpt-{step}"
        assert f"Skipping damaged checkpoint {damaged}" in log
    assert f"from {checkpoints / f'ckpt-{step - 2}'}" in log
    assert_bit_equal(processes.state("killed"), processes.state("whole"))


@pytest.mark.skipif(
    shutil.which("unshare") is None, reason="needs unshare of util-linux"
)
def test_a_full_disk_loses_no_checkpoint(tmp_path):
    """On a disk that is full in the middle of a run, and then enlarged."""
    processes = Processes(tmp_path)
    processes.complete("one", {"whole": SHORT})
    whole = sum(
        file.stat().st_size
        for file in (tmp_path / "whole").rglob("*")
        if file.is_file()
    )
    disk, copy = tmp_path / "disk", tmp_path / "copy"
    disk.mkdir()
    runs = {"runs": [{"output": str(disk / "run"), **SHORT}]}
    command = [sys.executable, "-m", "tests.helpers.run_training"]
    command = shlex.join([*command, json.dumps(runs)])
    script = f"""
    mount -t tmpfs -o size={whole // 2} tmpfs {disk} &&
    {command}
    status=$?
    ls {disk}/run/checkpoints
    mount -o remount,size={4 * whole} {disk} &&
    {command} &&
    cp -r {disk}/run {copy} &&
    exit $status
    """
    ended = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script],
        capture_output=True,
        text=True,
        env=os.environ,
    )
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr
    assert "No space left on device" in ended.stderr
    assert "Resuming at step" in ended.stdout
    assert_bit_equal(read_state(copy), processes.state("whole"))
