"""Seconds to import and to build, and the memory of the largest model.

    python -m benchmarks.startup --output startup.json

Every measurement is a process of its own; the fastest of a few rounds counts.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from benchmarks.record import show, write

BUILD_AND_RUN = """
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


def measure(program, rounds):
    """Fewest seconds and bytes that a program prints."""
    runs = []
    for _ in range(rounds):
        printed = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        runs.append(tuple(map(float, printed.split()[-2:])))
    seconds, peaks = zip(*runs, strict=True)
    return {"seconds": min(seconds), "peak_bytes": min(peaks)}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    programs = {"import keras_cait, after keras": IMPORT} | {
        f"build {variant}, classify one image": BUILD_AND_RUN.format(
            variant=variant
        )
        for variant in ("S24", "M48")
    }
    results = {
        name: measure(program, arguments.rounds)
        for name, program in programs.items()
    }
    title = "From nothing to an answer"
    tables = {title: rows(results)}
    show(title, tables[title])
    write(tables, arguments.output)


def rows(results):
    return {
        name: {
            "seconds": result["seconds"],
            "peak MB": result["peak_bytes"] / 1e6 or None,
        }
        for name, result in results.items()
    }


if __name__ == "__main__":
    main()
