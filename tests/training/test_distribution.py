"""The same numbers on all devices, and runs that end at any moment.

Processes of `tests.helpers.run_training` are compared by all that their
checkpoints hold. Every process does several things in turn, as starting one
takes longest.
"""

import json
import signal

import numpy as np
import pytest

from tests.helpers.processes import Processes
from tests.helpers.runs import assert_bit_equal

# Dozens of processes, each of which traces its model: minutes.
pytestmark = pytest.mark.large

ACCUMULATED = {"accumulation_steps": 4}
XLA = {"xla": True}
REMATERIALIZED = {"rematerialize": True}
DROPPING = {"drop_path_rate": 0.2}
SKIPPING = {"on_nonfinite": "skip", "trouble": [7, "not_a_number"]}
FLOAT16 = {"precision": "mixed_float16", **SKIPPING}
BFLOAT16 = {
    "precision": "mixed_bfloat16",
    "record_draws": True,
    **ACCUMULATED,
    **DROPPING,
}
KILLED = {"trouble": [7, "SIGKILL", 0]}


def difference(ours, theirs):
    """Largest difference of weights, relative to the largest of each.

    No gradient reaches the biases that softmax cancels, those of keys and of
    the mixed scores; AdamW makes moves of the rounding noise there.
    """
    ours, theirs = (
        {n: v for n, v in state.items() if n.startswith(("model/", "average/"))}
        for state in (ours, theirs)
    )
    assert ours.keys() == theirs.keys()
    differences = {}
    for name in ours:
        a, b = ours[name], theirs[name]
        if name.endswith(("key/bias", "proj_logits/bias")):
            continue
        if name.endswith("qkv/bias"):
            a, b = (np.delete(v.reshape(3, -1), 1, 0) for v in (a, b))
        differences[name] = np.abs(a - b).max() / np.abs(b).max()
    assert len(differences) > 40
    return max(differences.values())


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    return Processes(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def one(processes):
    """Runs on one device; the last, `moved`, is killed."""
    runs = {
        "one": {},
        "one-accumulated": ACCUMULATED,
        "one-xla": XLA,
        "one-rematerialized": REMATERIALIZED,
        "one-dropping": DROPPING,
        "one-skipping": SKIPPING,
        "moved": KILLED,
    }
    assert processes.ended(processes.run("one", runs)) == [-signal.SIGKILL], (
        processes.log()
    )
    return processes


@pytest.fixture(scope="module")
def mirrored(one):
    """Runs on two devices; `moved` is resumed, the last is killed."""
    runs = {
        "mirrored-bfloat16": BFLOAT16,
        "moved": {},
        "mirrored": {},
        "mirrored-rematerialized": REMATERIALIZED,
        "mirrored-dropping": DROPPING,
        "mirrored-skipping": SKIPPING,
        "mirrored-float16": FLOAT16,
        "mirrored-accumulated-xla": ACCUMULATED | XLA | REMATERIALIZED,
        "mirrored-killed": DROPPING | KILLED,
    }
    statuses = one.ended(one.run("mirrored", runs))
    assert statuses == [-signal.SIGKILL], one.log()
    return one


@pytest.fixture(scope="module")
def workers(one):
    """Runs of two workers, of which the last loses one."""
    runs = {
        "workers": {},
        "workers-accumulated-xla": ACCUMULATED | XLA,
        "workers-dropping": DROPPING,
        "workers-killed": DROPPING | KILLED,
    }
    statuses = one.ended(one.run("workers", runs, workers=2))
    assert statuses == [-signal.SIGKILL, 1], one.log(1)
    return one


@pytest.mark.parametrize(
    "run", ["one-accumulated", "one-xla", "one-rematerialized"]
)
def test_same_weights_on_one_device(run, one):
    assert difference(one.state(run), one.state("one")) <= 1e-5


@pytest.mark.parametrize(
    "run",
    [
        "mirrored",
        "mirrored-rematerialized",
        "mirrored-accumulated-xla",
        "moved",
    ],
)
def test_same_weights_on_two_devices(run, mirrored):
    assert difference(mirrored.state(run), mirrored.state("one")) <= 1e-5


@pytest.mark.parametrize("run", ["workers", "workers-accumulated-xla"])
def test_same_weights_of_two_workers(run, workers):
    assert difference(workers.state(run), workers.state("one")) <= 1e-5


def test_killed_on_one_device_ends_bit_equal(one):
    killed = {"one-killed": DROPPING | {"trouble": [3, "SIGKILL"]}}
    for _ in range(2):  # in the first epoch, and in the middle of the second
        statuses = one.ended(one.run("one", killed))
        assert statuses == [-signal.SIGKILL], one.log()
        killed["one-killed"]["trouble"] = [7, "SIGKILL"]
    one.complete("one", {"one-killed": DROPPING})
    assert_bit_equal(one.state("one-killed"), one.state("one-dropping"))
    assert one.history("one-killed") == one.history("one-dropping")


def test_killed_on_two_devices_ends_bit_equal(mirrored):
    mirrored.complete("mirrored", {"mirrored-killed": DROPPING})
    whole = "mirrored-dropping"
    assert_bit_equal(mirrored.state("mirrored-killed"), mirrored.state(whole))
    assert mirrored.history("mirrored-killed") == mirrored.history(whole)


def test_worker_that_dies_stops_the_others_which_resume_bit_equal(workers):
    assert "Another worker died or hangs" in workers.log(1)
    workers.complete("workers", {"workers-killed": DROPPING}, workers=2)
    whole = "workers-dropping"
    assert_bit_equal(workers.state("workers-killed"), workers.state(whole))
    assert workers.history("workers-killed") == workers.history(whole)


def test_no_two_draws_of_dropped_branches_share_a_seed(mirrored):
    folder = mirrored.folder / "mirrored-bfloat16"
    draws = json.loads((folder / "draws.json").read_text())
    # Of one block: two branches, four micro-batches, two devices, 20 steps.
    assert len(draws) == 2 * 4 * 2 * 20
    assert len(set(map(tuple, draws))) == len(draws)


def test_step_that_is_not_finite_on_the_last_device_is_skipped_by_all(mirrored):
    skipped = mirrored.state("one-skipping")
    assert all(np.isfinite(v).all() for v in skipped.values())
    assert skipped["nonfinite"] == 7
    assert difference(mirrored.state("mirrored-skipping"), skipped) <= 1e-5
    assert difference(mirrored.state("one"), skipped) > 1e-3


def test_float16_skips_on_all_devices_and_halves_its_scale(mirrored):
    state = mirrored.state("mirrored-float16")
    assert all(np.isfinite(v).all() for v in state.values())
    assert state["nonfinite"] == 7
    assert state["optimizer/dynamic_scale"] < 2**15
    assert difference(state, mirrored.state("mirrored-skipping")) < 0.2


def test_bfloat16_stays_near_float32(mirrored):
    state = mirrored.state("mirrored-bfloat16")
    assert 0 < difference(state, mirrored.state("mirrored-dropping")) < 0.2


def test_sigterm_of_one_worker_saves_and_stops_all(one):
    runs = {"workers-asked": DROPPING | {"trouble": [3, "SIGTERM", 1]}}
    assert one.ended(one.run("workers", runs, workers=2)) == [130, 130]
    for index in range(2):
        assert "Stopped and saved at step 10." in one.log(index)
    assert one.state("workers-asked")["step"] == 10


@pytest.mark.parametrize("what", ["SIGSTOP", "stuck"])
def test_worker_that_hangs_stops_the_others(what, one):
    runs = {f"workers-{what}": {"trouble": [3, what, 1]}}
    other, hanging = one.run("workers", runs, workers=2, timeout=15)
    try:
        assert one.ended([other], 120) == [1], one.log(0)
    finally:
        one.ended([hanging], 0) if hanging.poll() is not None else (
            hanging.kill()
        )
        hanging.wait()
    assert "Another worker died or hangs" in one.log(0)


@pytest.mark.parametrize("index", [0, 1])
def test_worker_that_never_starts_stops_the_others(index, one):
    runs = {"workers-alone": {}}
    processes = one.run("workers", runs, workers=2, start=[index], timeout=3)
    assert one.ended(processes, 60) == [1]
    said = one.log(index)
    assert "Waiting up to 3 seconds for all workers." in said
    assert "Timeout (0:00:03)!" in said
