"""Times several runners fairly: one process each, in interleaved rounds."""

import importlib.util
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

# The package a runner needs, and a picklable function that sets it up and
# returns the function to time.
Runner = tuple[str, Callable[..., Callable[[], object]]]


@dataclass(frozen=True)
class Timing:
    """Fastest run of a runner in seconds, and the peak memory of its process
    in bytes."""

    seconds: float
    peak_bytes: int


def interleave(
    runners: Mapping[str, Runner], arguments: tuple[Any, ...], rounds: int
) -> dict[str, Timing | str]:
    """Times each runner once per round, so that noise reaches all alike.

    Every runner is set up first. In each round it runs twice with all cores,
    and the second run is timed. The fastest round counts.

    Args:
        runners: package and setup function by name.
        arguments: arguments of the setup functions.
        rounds: number of timed runs per runner.

    Returns:
        Timing by name; or, as a string, why a runner could not run.
    """
    spawn = multiprocessing.get_context("spawn")
    running: dict[str, tuple[Connection, Any]] = {}
    results: dict[str, Timing | str] = {}
    for name, (package, set_up) in runners.items():
        if importlib.util.find_spec(package) is None:
            results[name] = f"{package} is not installed"
            continue
        connection, child = spawn.Pipe()
        process = spawn.Process(
            target=serve, args=(child, set_up, arguments), daemon=True
        )
        process.start()
        error = connection.recv()
        if error:
            results[name] = error.partition("\n")[0]
        else:
            running[name] = connection, process
    for _ in range(rounds):
        for name, (connection, _) in running.items():
            connection.send(True)
            seconds, peak = connection.recv()
            before = results.get(name)
            if isinstance(before, Timing):
                seconds = min(seconds, before.seconds)
            results[name] = Timing(seconds, peak)
    for connection, process in running.values():
        connection.send(False)
        process.join()
    return {name: results[name] for name in runners}


def serve(
    connection: Connection,
    set_up: Callable[..., Callable[[], object]],
    arguments: tuple[Any, ...],
) -> None:
    """Runs in the process of a runner: one timed run per message."""
    try:
        run = set_up(*arguments)
        run()
        run()
    except Exception as error:  # reported in the table
        connection.send(f"{type(error).__name__}: {error}")
        return
    connection.send(None)
    while connection.recv():
        run()  # the other runners have filled the caches
        start = time.perf_counter()
        run()
        seconds = time.perf_counter() - start
        # Linux reports KiB, macOS bytes.
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        connection.send((seconds, peak))


def relative(reference: Timing | str, timing: Timing) -> float | None:
    """Speed relative to a reference, `None` if that did not run."""
    if isinstance(reference, str):
        return None
    return reference.seconds / timing.seconds
