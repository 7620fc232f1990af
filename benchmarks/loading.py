"""Loading: time to load weights into a built model, and to read their file.

The file is in the page cache, so neither disk nor network is measured: the
strictest case for the time added to reading. timm, if installed, loads the same
file.
"""

import hashlib
import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cyclopts import App

from benchmarks.interleave import Timing, relative, take_turns
from benchmarks.results import Output, Rounds, Rows, show, write
from training.recipes import Variant

app = App(name="python -m benchmarks.loading", help=__doc__)


@app.default
def main(
    *, variant: Variant = "S24", rounds: Rounds = 15, output: Output = None
) -> None:
    """Times loading a .safetensors file.

    Args:
        variant: Model to load, such as XXS24 or M48.
    """
    import keras_cait

    model = getattr(keras_cait, f"CaiT_{variant}")(weights=None)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        keras_cait.save_checkpoint(model, path)
        megabytes = path.stat().st_size / 1e6
        timings = take_turns(measurements(model, path), rounds)
    title = f"Weights of CaiT-{variant}, {megabytes:.0f} MB"
    tables = {title: rows(timings)}
    show(title, tables[title])
    write(tables, output, rounds)


def rows(timings: dict[str, Timing]) -> Rows:
    """Seconds, also relative to reading the file."""
    reading = timings["read the file"]
    return {
        name: {
            **timing.columns("seconds", lambda s: s),
            "reading = 1": relative(timing, reading),
        }
        for name, timing in timings.items()
    }


def measurements(model: Any, path: Path) -> dict[str, Callable[[], object]]:
    """The functions to time."""
    import keras_cait

    def verify() -> None:
        with path.open("rb") as file:
            hashlib.file_digest(file, "sha256")

    timed = {
        "read the file": path.read_bytes,
        "load into a built model": lambda: keras_cait.load_checkpoint(
            model, path
        ),
        'SHA-256 (only weights="imagenet")': verify,
    }
    if importlib.util.find_spec("timm"):
        import timm

        theirs = timm.create_model(f"{model.name}_{model.image_shape[0]}")
        timed["timm: load into a built model"] = lambda: (
            timm.models.load_checkpoint(theirs, str(path))
        )
    return timed


if __name__ == "__main__":
    from keras_cait.command_line import run

    run(app)
