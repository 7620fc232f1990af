"""Startup: time to import, and to build a model and classify one image.

Each measurement is a process of its own.
"""

import os
import subprocess
import sys

from cyclopts import App

from benchmarks.interleave import Timing
from benchmarks.results import Output, Rounds, Rows, show, write

BUILD_AND_CLASSIFY = """
import resource, time, numpy as np, keras, keras_cait
start = time.perf_counter()
model = keras_cait.CaiT_{variant}(weights=None)
built = time.perf_counter() - start
model(np.zeros((1, *model.input.shape[1:]), "float32"))
print(built, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
IMPORT = """
import keras, time
start = time.perf_counter()
import keras_cait
print(time.perf_counter() - start, 0)
"""


def measure(programs: dict[str, str], rounds: int) -> dict[str, Timing]:
    """The seconds and bytes that programs print, in interleaved rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    peaks: dict[str, int] = {}
    for _ in range(rounds):
        for name, program in programs.items():
            printed = subprocess.run(
                [sys.executable, "-c", program],
                env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
                capture_output=True,
                check=True,
                text=True,
            ).stdout.split()
            seconds[name].append(float(printed[-2]))
            peaks[name] = int(printed[-1])
    return {
        name: Timing(tuple(seconds[name]), peaks[name]) for name in programs
    }


def rows(timings: dict[str, Timing]) -> Rows:
    """Seconds and peak memory."""
    return {
        name: {
            **timing.columns("seconds", lambda s: s),
            "peak MB": timing.peak_bytes / 1e6 or None,
        }
        for name, timing in timings.items()
    }


app = App(name="python -m benchmarks.startup", help=__doc__)


@app.default
def main(*, rounds: Rounds = 5, output: Output = None) -> None:
    """Times the import of keras_cait, and S24 and M48 from scratch."""
    programs = {"import keras_cait, after keras": IMPORT} | {
        f"build {variant}, classify one image": BUILD_AND_CLASSIFY.format(
            variant=variant
        )
        for variant in ("S24", "M48")
    }
    title = "Import, build and classify"
    tables = {title: rows(measure(programs, rounds))}
    show(title, tables[title])
    write(tables, output, rounds)


if __name__ == "__main__":
    from keras_cait.command_line import run

    run(app)
