"""Time to load a checkpoint into a built model, over that to read its file.

    python -m benchmarks.loading --variant S24 --output loading.json

The file lies in the page cache of the machine, so that neither disk nor
network are measured; that is the strictest case for what we add to reading.
Of each round-robin of all measurements the fastest is kept. timm, where it is
installed, loads the same file into its own built model.
"""

import argparse
import hashlib
import importlib.util
import tempfile
import time
from pathlib import Path

import keras_cait
from benchmarks.record import show, write


def parser():
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument(
        "--variant", default="S24", help="such as XXS24, M48"
    )
    arguments.add_argument("--rounds", type=int, default=15)
    arguments.add_argument("--output", type=Path, help="JSON file to write")
    return arguments


def main():
    arguments = parser().parse_args()
    model = getattr(keras_cait, f"CaiT_{arguments.variant}")(weights=None)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        keras_cait.save_checkpoint(model, path)
        megabytes = path.stat().st_size / 1e6
        seconds = fastest(measurements(model, path), arguments.rounds)

    title = f"Weights of CaiT-{arguments.variant}, {megabytes:.0f} MB"
    tables = {title: rows(seconds)}
    show(title, tables[title])
    write(tables, arguments.output)


def rows(seconds):
    return {
        name: {"seconds": s, "reading = 1": s / seconds["read the file"]}
        for name, s in seconds.items()
    }


def measurements(model, path):
    """What is timed, by name: functions without arguments."""

    def verify():
        with path.open("rb") as file:
            hashlib.file_digest(file, "sha256")

    timed = {
        "read the file": path.read_bytes,
        "load into a built model": lambda: keras_cait.load_checkpoint(
            model, path
        ),
        'SHA-256 (weights="imagenet" only)': verify,
    }
    if importlib.util.find_spec("timm"):
        import timm

        size = model.image_shape[0]
        name = f"{model.name}_{size}"
        theirs = timm.create_model(name)
        timed["timm: load into a built model"] = lambda: (
            timm.models.load_checkpoint(theirs, str(path))
        )
    return timed


def fastest(timed, rounds):
    """The least seconds of each, measured in turn so that all share noise."""
    seconds = dict.fromkeys(timed, float("inf"))
    for _ in range(rounds):
        for name, function in timed.items():
            start = time.perf_counter()
            function()
            elapsed = time.perf_counter() - start
            seconds[name] = min(seconds[name], elapsed)
    return seconds


if __name__ == "__main__":
    main()
