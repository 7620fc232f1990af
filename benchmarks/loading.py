"""Loading: time to load weights into a built model, and to read their file.

The file is in the page cache, so neither disk nor network is measured: the
strictest case for the time added to reading. timm loads the same file.
"""

import hashlib
import tempfile
import zlib
from functools import partial
from pathlib import Path

from benchmarks.command import Output, Rounds, benchmark_app, run
from benchmarks.inference import Case, Run, timm_model
from benchmarks.interleave import Runner, Timing, interleave, relative
from benchmarks.results import Rows, show, write
from training.recipe import Variant


def file(case: Case) -> Path:
    return Path(case.folder, "model.safetensors")


def read_runner(case: Case) -> Run:
    return file(case).read_bytes


def keras_cait_runner(case: Case) -> Run:
    import keras_cait

    model = getattr(keras_cait, f"CaiT_{case.variant}")(weights=None)
    return partial(keras_cait.load_weights, model, file(case))


def crc_runner(case: Case) -> Run:
    return partial(zlib.crc32, file(case).read_bytes())


def sha256_runner(case: Case) -> Run:
    def verify() -> None:
        with file(case).open("rb") as opened:
            hashlib.file_digest(opened, "sha256")

    return verify


def timm_runner(case: Case) -> Run:
    import timm

    model = timm_model(case)
    return partial(timm.models.load_checkpoint, model, str(file(case)))


RUNNERS: dict[str, Runner] = {
    "read the file": ("keras_cait", read_runner),
    "load into a built model": ("tensorflow", keras_cait_runner),
    "CRC-32, a part of loading": ("keras_cait", crc_runner),
    'SHA-256 (only weights="imagenet")': ("keras_cait", sha256_runner),
    "timm: load into a built model": ("timm", timm_runner),
}


def rows(timings: dict[str, Timing | str]) -> Rows:
    """Seconds, also relative to reading the file."""
    reading = timings["read the file"]
    found = {}
    for name, timing in timings.items():
        if isinstance(timing, str):
            found[name] = {"seconds": timing}
        elif isinstance(reading, Timing):
            found[name] = {
                **timing.columns("seconds", lambda s: s),
                "reading = 1": relative(timing, reading),
            }
    return found


app = benchmark_app("loading", __doc__)


@app.default
def main(
    *, variant: Variant = "S24", rounds: Rounds = 15, output: Output = None
) -> None:
    """Times loading a .safetensors file.

    Args:
        variant: Model to load, such as XXS24 or M48.
    """
    import keras_cait
    from keras_cait.models import VARIANTS

    with tempfile.TemporaryDirectory() as folder:
        case = Case(variant, VARIANTS[variant].image_size, 1, folder)
        model = getattr(keras_cait, f"CaiT_{variant}")(weights=None)
        keras_cait.save_weights(model, file(case))
        megabytes = file(case).stat().st_size / 1e6
        timings = interleave(RUNNERS, (case,), rounds)
    title = f"Weights of CaiT-{variant}, {megabytes:.0f} MB"
    tables = {title: rows(timings)}
    show(title, tables[title])
    write(tables, output, rounds)


if __name__ == "__main__":
    run(app)
