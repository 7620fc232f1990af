"""How contestants are compared: in turns, each in a process of its own."""

import importlib.util
import multiprocessing
import resource
import sys
import time


def take_turns(contestants, arguments, rounds):
    """Fastest seconds and peak bytes of every contestant that is installed.

    All of them are set up first, and then run twice each in every round, with
    all cores, so that a noisy machine treats all alike; the second is timed.

    Args:
        contestants: dict of names to `(package, make)`: what must be
            installed, and a picklable function of `arguments` that makes the
            function to be timed.
        arguments: tuple.
        rounds: int.

    Returns:
        dict of names to `seconds` and `peak_bytes`, or to an `error`.
    """
    spawn = multiprocessing.get_context("spawn")
    running, results = {}, {}
    for name, (package, make) in contestants.items():
        if importlib.util.find_spec(package) is None:
            results[name] = {"error": f"{package} is not installed"}
            continue
        connection, theirs = spawn.Pipe()
        process = spawn.Process(
            target=serve, args=(theirs, make, arguments), daemon=True
        )
        process.start()
        error = connection.recv()
        if error:
            results[name] = {"error": error.partition("\n")[0]}
        else:
            running[name] = connection, process
    times = {name: [] for name in running}
    for _ in range(rounds):
        for name, (connection, _) in running.items():
            connection.send(True)
            seconds, peak = connection.recv()
            times[name].append(seconds)
            results[name] = {"seconds": min(times[name]), "peak_bytes": peak}
    for connection, process in running.values():
        connection.send(False)
        process.join()
    return {name: results[name] for name in contestants}


def serve(connection, make, arguments):
    """The process of a contestant: runs once for each message."""
    try:
        run = make(*arguments)
        run()
        run()
    except Exception as error:  # it is reported, not hidden
        connection.send(f"{type(error).__name__}: {error}")
        return
    connection.send(None)
    while connection.recv():
        run()  # the others have filled the caches with theirs
        start = time.perf_counter()
        run()
        seconds = time.perf_counter() - start
        # Linux gives KiB, macOS bytes.
        unit = 1 if sys.platform == "darwin" else 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        connection.send((seconds, peak))
