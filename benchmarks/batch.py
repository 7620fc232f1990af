"""Batch prediction: images/s against a bare loop, and with simulated GPUs.

The quickstart's model, with random weights, classifies JPEGs of digits:
`python -m export predict`, and a loop that reads 64 files at a time and calls
the SavedModel, in turns; each in a new process. Both also classify a tenth of
the images: the difference is the speed, and what is left the start.

Simulated GPUs classify 1,000 images/s: a model sleeps as long, and images are
blank and tiny. What is measured is how many GPUs one driver can feed.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple
from unittest import mock

import psutil
from cyclopts import Parameter

from benchmarks.command import Count, Output, Rounds, benchmark_app, run
from benchmarks.interleave import Timing, relative
from benchmarks.results import Rows, show, write

BATCH = 64
# Images/s of a simulated GPU, and how long all of them have work.
SPEED = 1000
SECONDS = 10
# Rows per block of pixels at 224, and per part.
BLOCK, PART = 448, 3584
# Side of their images. Blocks are so large that Ray neither merges them nor
# divides their predictions.
SIDE, BLOCK_BYTES = 8, 80_000
# Shared memory per process: blocks without pixels need little.
STORE_BYTES = 32 << 20

LOOP = """
import sys
from pathlib import Path
import tensorflow as tf

classify = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
files = sorted(Path(sys.argv[2]).iterdir())
for start in range(0, len(files), 64):
    batch = [file.read_bytes() for file in files[start : start + 64]]
    classify(image_bytes=tf.constant(batch))["classes"].numpy()
"""

app = benchmark_app("batch", __doc__)


@app.default
def main(
    *,
    images: Count = 20_000,
    pixels: Count = 64,
    rounds: Rounds = 3,
    workers: Annotated[tuple[Count, ...], Parameter(show_default=False)] = (
        *(1, 2, 4, 8, 16, 32, 64),
    ),
    output: Output = None,
) -> None:
    """Times batch prediction.

    Args:
        images: Images per run.
        pixels: Height and width of the JPEGs.
        workers: Numbers of simulated GPUs.
    """
    # Ray's workers give way to other programs; the loop does not.
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
    tables: dict[str, Rows] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_images(folder / "images", images, pixels)
        write_model(folder / "model")
        title = f"{images:,} JPEGs of {pixels} x {pixels}"
        tables[title] = beside_loop(folder, images, rounds)
        show(title, tables[title])
    if workers:
        title = "Simulated GPUs"
        tables[title] = simulated(workers)
        show(title, tables[title])
    write(tables, output, rounds)


def write_images(folder: Path, count: int, side: int) -> None:
    """Writes the digits as JPEGs, over and over."""
    from PIL import Image

    from keras_cait.datasets import open_dataset

    folder.mkdir()
    digits = open_dataset("digits", "train")
    for i in range(count):
        image = Image.fromarray(digits[i % len(digits)][0])
        image.resize((side, side)).save(folder / f"{i:06d}.jpg")


def write_model(folder: Path) -> None:
    """Writes a SavedModel of the quickstart's size."""
    import keras_cait
    from export.serving.model_folder import write_version
    from training.recipes import RECIPES

    recipe = RECIPES["quickstart"]
    model = keras_cait.CaiT(
        **recipe.architecture(),
        patch_size=recipe.patch_size,
        input_shape=(recipe.image_size, recipe.image_size, 3),
        classes=10,
    )
    write_version(model, [str(digit) for digit in range(10)], folder)


def beside_loop(folder: Path, images: int, rounds: int) -> Rows:
    """Medians of the loop and of the command with 1 and 2 workers."""
    model = folder / "model"
    few = images // 10
    some = folder / "few"
    some.mkdir()
    for file in sorted((folder / "images").iterdir())[:few]:
        (some / file.name).hardlink_to(file)
    predict = ("-m", "export", "predict", "--model", str(model))
    names = ("bare loop", "1 worker", "2 workers")
    seconds: dict[str, list[float]] = {name: [] for name in names}
    starts: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names:
            both = []
            for files in (some, folder / "images"):
                output = folder / f"{name} {files.name} {number}"
                command = (
                    *(*predict, "--workers", name.split()[0]),
                    *("--input", str(files), "--output", str(output)),
                )
                if name == "bare loop":
                    command = ("-c", LOOP, str(model / "1"), str(files))
                both.append(timed(command))
            short, long = both
            seconds[name].append((long - short) / (images - few))
            starts[name].append(short - few * seconds[name][-1])
    timings = {name: Timing(tuple(found)) for name, found in seconds.items()}
    return {
        name: {
            **timing.columns("images/s", lambda s: 1 / s),
            "bare loop = 1": relative(timings["bare loop"], timing),
            "start, s": statistics.median(starts[name]),
        }
        for name, timing in timings.items()
    }


def timed(command: tuple[str, ...]) -> float:
    """Seconds of a Python command, from start to end."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    return time.perf_counter() - start


def simulated(workers: tuple[int, ...]) -> Rows:
    """Images per second of models that sleep, without the start.

    The shares of a core are those of the command, of Ray's own processes, and
    of the workers and decoders.
    """
    rows: dict[str, dict[str, float]] = {}
    for number in workers:
        first, last = run_simulated(number)
        seconds = last.time - first.time
        speed = (last.images - first.images) / seconds
        rows[f"{number} GPU{'s' * (number > 1)}"] = {
            "images/s": speed,
            "of their speed, %": 100 * speed / (number * SPEED),
            **{
                f"{name}, % of a core": 100
                * (last.cpu[name] - first.cpu[name])
                / seconds
                for name in last.cpu
            },
        }
    return rows


class Moment(NamedTuple):
    """What has been done and spent at a time, all in total."""

    time: float
    images: int
    cpu: dict[str, float]


def run_simulated(workers: int) -> tuple[Moment, Moment]:
    """The middle of a run, without its start and end."""
    from export.batch import cluster, pipeline  # before Ray
    from export.batch.job import open_job

    # isort: split
    import ray
    from ray.data import DataContext

    # Workers do not import this project, and so Keras and TensorFlow.
    for module in (pipeline, sys.modules[__name__]):
        ray.cloudpickle.register_pickle_by_value(module)
    DataContext.get_current().wait_for_min_actors_s = 600
    count = 2 + round(SECONDS * workers * SPEED / PART)
    labels = [str(i) for i in range(1000)]
    load = partial(sleeping, BATCH / SPEED)
    model = pipeline.Model(load, labels, 5, (SIDE, SIDE), BATCH)
    blocks = count * PART // BLOCK
    moments = []

    def watch(found: Iterator[Any]) -> Iterator[Any]:
        images = 0
        for number, block in enumerate(found):
            images += len(block)
            if number in (blocks // 4, 3 * blocks // 4):
                now = time.perf_counter()
                moments.append(Moment(now, images, cpu_seconds()))
            yield block

    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(cluster, "STORE_BYTES", STORE_BYTES),
        # Two decoders, or one for each two GPUs.
        mock.patch.object(
            cluster.os, "cpu_count", lambda: max(2, workers // 2)
        ),
        mock.patch.multiple(
            pipeline, decode=blank_blocks, BLOCK_BYTES=BLOCK_BYTES
        ),
        open_job(f"{folder}/out", {}, "parquet", False) as job,
        cluster.connect(None, workers),
    ):
        parts = {number: Blank() for number in range(count)}
        for number, rows in pipeline.predict_parts(
            parts, model, workers, "cpu", watch
        ):
            job.write(number, rows)
    first, last = moments
    return first, last


def cpu_seconds() -> dict[str, float]:
    """CPU seconds of this process, of Ray's own ones and of its workers."""
    this = psutil.Process()
    found = dict.fromkeys(("command", "Ray", "workers"), 0.0)
    found["command"] = sum(this.cpu_times()[:2])
    for process in this.children(recursive=True):
        with suppress(psutil.Error):  # it has ended
            is_worker = process.cmdline()[0].startswith("ray::")
            name = "workers" if is_worker else "Ray"
            found[name] += sum(process.cpu_times()[:2])
    return found


class Blank:
    """A part of images that are not read."""

    count = PART


def blank_blocks(
    batch: dict[str, Any], size: tuple[int, int], rows: int
) -> Iterator[dict[str, Any]]:
    """Blocks as in `decode`."""
    import numpy as np

    (number,) = batch["number"]
    for start in range(0, PART, BLOCK):
        index = np.arange(start, start + BLOCK)
        text = np.full(BLOCK, "", object)
        yield {
            "pixels": np.zeros((BLOCK, *size, 3), "uint8"),
            "part": np.full(BLOCK, number),
            "index": index,
            "last": index == PART - 1,
            "image": np.array([f"photos/{i:08d}.jpg" for i in index], object),
            "label": np.full(BLOCK, -1),
            "error": text,
        }


def sleeping(seconds: float, threads: int | None) -> Any:
    """A model of S24's classes that takes so long for a batch."""
    import numpy as np

    def predict(pixels: Any) -> dict[str, Any]:
        time.sleep(seconds)
        return {"probabilities": np.zeros((len(pixels), 1000), "float32")}

    return predict


if __name__ == "__main__":
    run(app)
