"""Checkpoints that are written while the state changes, and read again."""

import os
import resource
import shutil
import threading
from types import SimpleNamespace

import keras
import pytest
import tensorflow as tf

import training.loop.checkpoints as module
from training.loop.checkpoints import Checkpoints
from training.loop.run_folder import check_space


@pytest.fixture
def checkpoints(tmp_path):
    """Two small checkpoints: the weights of steps 1 and 2, the best one."""
    state = tf.train.Checkpoint(weights=tf.Variable(tf.zeros(4)))
    checkpoints = Checkpoints(state, tmp_path / "checkpoints")
    for step in (1, 2):
        save(checkpoints, step, is_best=step == 1)
    return checkpoints


def save(checkpoints, step, is_best=False):
    """Writes a checkpoint whose weights are its step."""
    weights = checkpoints.state.weights
    weights.assign(tf.fill(weights.shape, float(step)))
    checkpoints.save(step, is_best)
    checkpoints.wait()


def restored(checkpoints):
    """The step whose weights are found, which must be those of one step."""
    state = checkpoints.state
    state.weights.assign(tf.zeros_like(state.weights))
    path = checkpoints.restore()
    step = int(path.name.removeprefix("ckpt-"))
    assert set(state.weights.numpy()) == {step}
    return step


def kept(folder):
    """The names of all checkpoints in a folder, each with all its files."""
    names = sorted(file.stem for file in folder.glob("ckpt-*"))
    assert names[::2] == names[1::2]
    return names[::2]


@pytest.mark.parametrize("xla", [False, True])
def test_checkpoint_holds_one_step_while_the_next_are_done(
    xla, tmp_path, monkeypatch
):
    layer = keras.layers.Dense(3)
    layer.build((None, 5))
    state = tf.train.Checkpoint(
        layer=layer, weights=tf.Variable(tf.ones(1000)), step=tf.Variable(1)
    )

    @tf.function(jit_compile=xla)
    def step():
        state.weights.assign_add(state.weights)
        state.step.assign_add(1)
        for variable in layer.variables:
            variable.assign(variable + 1.0)

    go_on = threading.Event()
    with_values = module.with_values

    def waiting(*arguments):
        assert go_on.wait(60)
        return with_values(*arguments)

    monkeypatch.setattr(module, "with_values", waiting)
    expected = [value.numpy() for value in module.read(state).values()]
    with Checkpoints(state, tmp_path) as checkpoints:
        checkpoints.save(1)
        for _ in range(3):
            step()
        go_on.set()
    assert state.step.numpy() == 4
    checkpoints.restore()
    found = [value.numpy() for value in module.read(state).values()]
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours == theirs).all()


def test_the_last_three_and_the_best_are_kept(checkpoints):
    folder = checkpoints.folder
    for name in ("ckpt-1.index", "ckpt-1.data-00000-of-00001"):
        assert (folder / name).samefile(folder / "best" / name)
    for step in (3, 4, 10):
        save(checkpoints, step)
    assert kept(folder) == ["ckpt-10", "ckpt-3", "ckpt-4"]
    assert kept(folder / "best") == ["ckpt-1"]
    assert tf.train.latest_checkpoint(folder) == str(folder / "ckpt-10")
    assert restored(checkpoints) == 10
    for file in folder.glob("ckpt-*"):
        file.unlink()
    assert restored(checkpoints) == 1

    save(checkpoints, 11, is_best=True)
    best = folder / "best"
    assert kept(best) == ["ckpt-11"]
    assert tf.train.latest_checkpoint(best) == str(best / "ckpt-11")
    save(checkpoints, 5, is_best=True)  # the run has resumed before step 11
    assert kept(best) == ["ckpt-11", "ckpt-5"]


def test_the_best_is_copied_where_files_cannot_be_linked(
    checkpoints, monkeypatch
):
    def refuse(*arguments):
        raise PermissionError("Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    save(checkpoints, 3, is_best=True)
    for name in ("ckpt-3.index", "ckpt-3.data-00000-of-00001"):
        file, copy = (checkpoints.folder / n for n in (name, f"best/{name}"))
        assert file.read_bytes() == copy.read_bytes()
        assert not file.samefile(copy)


def test_no_kill_loses_the_best(checkpoints, monkeypatch):
    """Killed between the writing of a best checkpoint and that of its twin."""

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "link", killed)
    with pytest.raises(KeyboardInterrupt):
        save(checkpoints, 3, is_best=True)
    assert restored(checkpoints) == 3
    assert checkpoints.restore_best(checkpoints.state) == 3


def test_a_lost_best_checkpoint_is_told(checkpoints):
    for file in (checkpoints.folder / "best").glob("*.data*"):
        file.unlink()
    with pytest.raises(ValueError, match=r"best checkpoint, in .* damaged"):
        checkpoints.restore_best(checkpoints.state)


def test_the_best_outlives_a_checkpoint_that_is_written_again(checkpoints):
    index = checkpoints.folder / "best" / "ckpt-1.index"
    before = index.read_bytes()
    save(checkpoints, 1)
    assert index.read_bytes() == before
    assert not index.samefile(checkpoints.folder / index.name)


def test_disk_that_is_full_while_writing_is_told_next(checkpoints):
    checkpoints.state.weights = tf.Variable(tf.zeros(500_000))
    save(checkpoints, 3)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        checkpoints.save(4)
        with pytest.raises(tf.errors.OpError, match="File too large"):
            checkpoints.save(5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert restored(checkpoints) == 3
    assert list(checkpoints.folder.glob("*_temp"))
    again = Checkpoints(checkpoints.state, checkpoints.folder)
    assert not list(checkpoints.folder.glob("*_temp"))
    assert restored(again) == 3


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_failure_of_the_last_write_ends_the_block(error, tmp_path):
    """Unless the block has failed by itself."""
    folder = tmp_path / "checkpoints"
    folder.touch()
    state = tf.train.Checkpoint(weights=tf.Variable(1.0))
    with (
        pytest.raises(error or FileExistsError),
        Checkpoints(state, folder) as checkpoints,
    ):
        checkpoints.save(1)
        if error:
            raise error


def test_only_the_chief_writes(tmp_path):
    state = tf.train.Checkpoint(weights=tf.Variable(1.0))
    with Checkpoints(state, tmp_path, is_chief=False) as checkpoints:
        checkpoints.save(1, is_best=True)
    assert not list(tmp_path.iterdir())
    assert checkpoints.newest == tmp_path / "ckpt-1"  # as the others say


def test_checkpoints_of_earlier_versions_are_restored(tmp_path):
    state = tf.train.Checkpoint(weights=tf.Variable(tf.fill(4, 7.0)))
    for folder in (tmp_path, tmp_path / "best"):
        tf.train.CheckpointManager(state, folder, 3).save(7)
    state = tf.train.Checkpoint(weights=tf.Variable(tf.zeros(4)))
    checkpoints = Checkpoints(state, tmp_path)
    assert restored(checkpoints) == 7
    save(checkpoints, 8, is_best=True)
    assert kept(tmp_path) == ["ckpt-7", "ckpt-8"]
    assert kept(tmp_path / "best") == ["ckpt-8"]


@pytest.mark.parametrize("ending", ["index", "data-00000-of-00001"])
def test_damaged_checkpoint_is_skipped(ending, checkpoints, capsys):
    file = checkpoints.folder / f"ckpt-2.{ending}"
    whole = file.read_bytes()
    assert restored(checkpoints) == 2

    steps = []
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        file.write_bytes(flipped)
        steps.append(restored(checkpoints))
    # Bits of padding decide nothing.
    assert steps.count(1) > 0.7 * len(whole)
    for length in range(0, len(whole), 7):
        file.write_bytes(whole[:length])
        assert restored(checkpoints) == 1
    assert (
        f"Skipping damaged checkpoint {file.with_suffix('')}: "
        in capsys.readouterr().out
    )


def test_the_list_of_checkpoints_may_be_lost(checkpoints):
    (checkpoints.folder / "checkpoint").write_text("damaged")
    assert restored(checkpoints) == 2


@pytest.mark.parametrize("lacks", ["values", "a variable"])
def test_run_without_a_whole_checkpoint_is_refused(lacks, checkpoints):
    if lacks == "values":
        for file in checkpoints.folder.rglob("*.data*"):
            file.write_bytes(b"")
    else:
        checkpoints.state.another = tf.Variable(0.0)
    with pytest.raises(ValueError, match=r"All checkpoints in .* are damaged"):
        checkpoints.restore()


def test_space_that_a_run_needs_is_known(tmp_path, monkeypatch):
    """Within 1 % of what the files take."""
    model, average = (
        keras.Sequential([keras.Input((500,)), keras.layers.Dense(1000)])
        for _ in range(2)
    )
    optimizer = keras.optimizers.Adam()
    optimizer.build(model.trainable_variables)
    parts = {"model": model, "average": average, "optimizer": optimizer}
    with Checkpoints(tf.train.Checkpoint(**parts), tmp_path / "one") as one:
        one.save(1)
    written = sum(file.stat().st_size for file in (tmp_path / "one").iterdir())
    needed = 5 * written + written // 4  # the model is one of four parts

    trainer = SimpleNamespace(
        model=model, ema_model=average, optimizer=optimizer
    )
    usage = shutil.disk_usage(tmp_path)

    def is_enough(free):
        free = usage._replace(free=int(free))
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: free)
        try:
            check_space(tmp_path / "run", trainer)
        except ValueError as error:
            assert "5 checkpoints of 0.0 GB (the last 3" in str(error)
            assert "choose an --output on another disk." in str(error)
            return False
        return True

    assert is_enough(1.01 * needed)
    assert not is_enough(0.99 * needed)
    # What an earlier start has written is there already.
    with Checkpoints(
        tf.train.Checkpoint(**parts), tmp_path / "run" / "checkpoints"
    ) as checkpoints:
        checkpoints.save(1)
        checkpoints.save(2, is_best=True)
    assert is_enough(1.01 * needed - 2 * written)
    assert not is_enough(0.99 * needed - 2 * written)
