"""Times rivals fairly: in interleaved rounds, which share the noise."""

import importlib.util
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

# The package a runner needs, and a picklable function that sets it up and
# returns the function to time.
Runner = tuple[str, Callable[..., Callable[[], object]]]

ROUND_SECONDS = 0.3  # a shorter run is repeated


@dataclass(frozen=True)
class Timing:
    """Times of a runner.

    Attributes:
        seconds: of a run, in each round.
        peak_bytes: peak memory of its process.

    Example:
    >>> timing = Timing((0.02, 0.01, 0.04))
    >>> timing.median, timing.best, timing.spread
    (0.02, 0.01, 1.5)
    """

    seconds: tuple[float, ...]
    peak_bytes: int = 0

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def best(self) -> float:
        return min(self.seconds)

    @property
    def spread(self) -> float:
        """Slowest minus fastest round, divided by the median."""
        return (max(self.seconds) - self.best) / self.median

    def columns(
        self, unit: str, of: Callable[[float], float]
    ) -> dict[str, float]:
        """Median, best round and spread, as columns of a table.

        Args:
            unit: header of the median.
            of: what the table shows of a number of seconds.

        Example:
        >>> Timing((0.02, 0.01, 0.04)).columns("images/s", lambda s: 8 / s)
        {'images/s': 400.0, 'best': 800.0, 'spread, %': 150.0}
        """
        return {
            unit: of(self.median),
            "best": of(self.best),
            "spread, %": 100 * self.spread,
        }


def relative(reference: Timing | str, timing: Timing) -> float | str | None:
    """Speed relative to a reference: the median of the rounds' ratios.

    With `≈` where the rounds disagree on which of them is faster: more than
    one of ten has another answer than the rest.

    Returns:
        `None` if the reference did not run.

    Example:
    >>> relative(Timing((2.0, 2.0, 4.0)), Timing((1.0, 1.0, 1.0)))
    2.0
    >>> relative(Timing((1.02, 0.9, 1.04)), Timing((1.0, 1.0, 1.0)))
    '≈ 1.02'
    """
    if isinstance(reference, str):
        return None
    ratios = [
        theirs / own
        for theirs, own in zip(reference.seconds, timing.seconds, strict=True)
    ]
    ratio = statistics.median(ratios)
    faster, slower = sum(r > 1 for r in ratios), sum(r < 1 for r in ratios)
    if 10 * min(faster, slower) > len(ratios):
        return f"≈ {ratio:.2f}"
    return ratio


def compared(
    timings: Mapping[str, Timing | str], images: int, *references: str
) -> dict[str, dict[str, float | str | None]]:
    """Images per second of each runner, also relative to some of them.

    Args:
        timings: as in `interleave`.
        images: images of a run.
        references: names among the timings.

    Example:
    >>> rows = compared({"ours": Timing((0.5,)), "timm": "stopped"}, 8)
    >>> rows["ours"]["images/s"], rows["timm"]["images/s"]
    (16.0, 'stopped')
    """
    return {
        name: {"images/s": timing}
        if isinstance(timing, str)
        else {
            **timing.columns("images/s", lambda s: images / s),
            **{
                f"{reference} = 1": relative(timings[reference], timing)
                for reference in references
            },
        }
        for name, timing in timings.items()
    }


def interleave(
    runners: Mapping[str, Runner], arguments: tuple[Any, ...], rounds: int
) -> dict[str, Timing | str]:
    """Times runners that need processes of their own, each with all cores.

    Every runner is set up first, and runs twice. Then each is timed once per
    round.

    Args:
        runners: package and setup function by name.
        arguments: arguments of the setup functions.
        rounds: number of rounds.

    Returns:
        Timing by name; or, as a string, why a runner could not run.
    """
    spawn = multiprocessing.get_context("spawn")
    running: dict[str, tuple[Connection, Any]] = {}
    failed: dict[str, str] = {}
    for name, (package, set_up) in runners.items():
        if importlib.util.find_spec(package) is None:
            failed[name] = f"{package} is not installed"
            continue
        connection, child = spawn.Pipe()
        process = spawn.Process(
            target=serve, args=(child, set_up, arguments), daemon=True
        )
        process.start()
        child.close()  # so that the end of the process is seen
        try:
            error = connection.recv()
        except EOFError:
            error = "stopped"
        if error:
            failed[name] = error.partition("\n")[0]
        else:
            running[name] = connection, process
    seconds: dict[str, list[float]] = {name: [] for name in running}
    peaks: dict[str, int] = {}
    for _ in range(rounds):
        for name, (connection, _) in running.items():
            connection.send(True)
            one, peaks[name] = connection.recv()
            seconds[name].append(one)
    for connection, process in running.values():
        connection.send(False)
        process.join()
    return {
        name: failed.get(name) or Timing(tuple(seconds[name]), peaks[name])
        for name in runners
    }


def serve(
    connection: Connection,
    set_up: Callable[..., Callable[[], object]],
    arguments: tuple[Any, ...],
) -> None:
    """Runs in the process of a runner: one round per message."""
    try:
        run = set_up(*arguments)
        run()
        run()
    except Exception as error:  # reported in the table
        connection.send(f"{type(error).__name__}: {error}")
        return
    connection.send(None)
    while connection.recv():
        connection.send((seconds_of(run), peak_bytes()))


def peak_bytes() -> int:
    """Peak memory of this process.

    Linux counts that of the process which started it, too, in `ru_maxrss`.
    """
    with suppress(OSError):
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # of macOS


def take_turns(
    functions: Mapping[str, Callable[[], object]], rounds: int
) -> dict[str, Timing]:
    """Times functions in this process, each once per round.

    Each is called twice before.
    """
    for function in functions.values():
        for _ in range(2):
            function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            seconds[name].append(seconds_of(function))
    return {name: Timing(tuple(found)) for name, found in seconds.items()}


def seconds_of(run: Callable[[], object]) -> float:
    """Seconds of a run, as a mean over a round if it is short."""
    start = time.perf_counter()
    run()  # the others have filled the caches
    seconds = time.perf_counter() - start
    count = int(ROUND_SECONDS / seconds)
    if count == 0:  # too long for the caches to matter
        return seconds
    start = time.perf_counter()
    for _ in range(count):
        run()
    return (time.perf_counter() - start) / count
