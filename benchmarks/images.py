"""Images: which formats are read, and what the worst of them cost.

Time and peak memory of decoding and resizing to 224 x 224 pixels: in the graph
of training, evaluation and serving, and with `load_image`. Each of the largest
accepted images has a process of its own; oversized and damaged ones share one.
"""

import ctypes
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import image_files
from benchmarks.command import Output, benchmark_app, run
from benchmarks.results import Rows, show, write

SIDE = 7071  # a square of 50 megapixels
DECODERS = ("graph", "load_image", "training crop")


@dataclass
class Peak:
    """The most memory that a block added, in megabytes."""

    megabytes: float = 0.0


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Measures the peak memory that a block adds. Linux only.

    Example:
    >>> with peak_memory() as peak:
    ...     data = bytearray(b"x" * 10_000_000)
    >>> peak.megabytes > 9
    True
    """

    def status(key: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        line = next(line for line in lines if line.startswith(key))
        return int(line.split()[1]) * 1024 / 1e6

    peak = Peak()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = status("VmRSS")
    try:
        yield peak
    finally:
        peak.megabytes = status("VmHWM") - before


def decoder(name: str) -> Callable[[bytes], Any]:
    """A function of a file's content to pixels, which has run once."""
    import tensorflow as tf

    from keras_cait.decoding import decode_batch
    from keras_cait.preprocessing import load_image, resize_and_crop
    from training.data.augmentation import random_resized_crop

    def in_graph(function: Callable[[Any], Any]) -> Callable[[bytes], Any]:
        spec = tf.TensorSpec((), tf.string)
        return tf.function(function, input_signature=[spec])

    decode = {
        "graph": in_graph(lambda encoded: decode_batch(encoded[None], 224)[0]),
        "load_image": lambda data: resize_and_crop(load_image(data), 224),
        "training crop": in_graph(
            lambda encoded: random_resized_crop(encoded, (0, 1), 224)
        ),
    }[name]
    decode(image_files.encode(image_files.example(), "JPEG"))
    return decode


def measure(name: str, folder: Path) -> None:
    """Prints for each file of a folder the seconds and megabytes, as JSON."""
    import warnings

    import tensorflow as tf

    warnings.simplefilter("ignore")  # of Pillow, about what is damaged
    decode = decoder(name)
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        start = time.perf_counter()
        with peak_memory() as peak:
            try:
                decode(data)
                is_read = True
            except (ValueError, tf.errors.InvalidArgumentError):
                is_read = False
        seconds = time.perf_counter() - start
        print(json.dumps([is_read, seconds, peak.megabytes]), flush=True)


def measured(files: list[bytes], name: str) -> list[list[Any]]:
    """What `measure` prints, in a new process."""
    with tempfile.TemporaryDirectory() as folder:
        for number, data in enumerate(files):
            (Path(folder) / f"{number:04}").write_bytes(data)
        code = (
            "from pathlib import Path; from benchmarks.images import measure; "
            f"measure({name!r}, Path({folder!r}))"
        )
        process = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
        )
    if process.returncode:
        last = (process.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"{name} ended with {process.returncode}: {last}")
    return [json.loads(line) for line in process.stdout.splitlines()]


def largest() -> Iterator[tuple[str, float, Callable[[], bytes]]]:
    """Images of 50 megapixels and of extreme shapes: name, megapixels, file."""

    def encoded(kind: str, mode: str = "RGB", **options: Any) -> bytes:
        image = image_files.example(SIDE, SIDE).convert(mode)
        return image_files.encode(image, kind, **options)

    orientation = image_files.turned("JPEG", 6)
    exif = orientation[orientation.index(b"Exif") :][:60]
    progressive = {"progressive": True, "subsampling": 0}
    squares: dict[str, Callable[[], bytes]] = {
        "JPEG": lambda: encoded("JPEG"),
        "JPEG, turned": lambda: encoded("JPEG", exif=exif),
        "JPEG, progressive": lambda: encoded("JPEG", **progressive),
        "JPEG, progressive CMYK": lambda: encoded(
            "JPEG", "CMYK", **progressive
        ),
        "JPEG, 90 scans": lambda: image_files.many_scans(80, SIDE),
        "PNG": lambda: encoded("PNG", compress_level=1),
        "PNG, gray of 16 bits": lambda: image_files.png(SIDE, SIDE, 16),
        "PNG, RGBA of 16 bits": lambda: image_files.png(SIDE, SIDE, 16, 6),
        "GIF": lambda: encoded("GIF", "P"),
        "GIF, small frame": lambda: image_files.gif_with_small_frame(
            (SIDE, SIDE)
        ),
        "BMP": lambda: image_files.bmp(SIDE, SIDE),
        "BMP, palette": lambda: image_files.bmp(SIDE, SIDE, 8),
    }
    for name, make in squares.items():
        yield name, SIDE * SIDE / 1e6, make
    for height, width in (
        *((1, 1000), (1, 5000), (5000, 1), (1, 50_000)),
        *((50, 1_000_000), (1_000_000, 50)),
    ):
        yield (
            f"PNG, {height} x {width}",
            height * width / 1e6,
            partial(image_files.png, height, width, 8, 2),
        )


def formats() -> Rows:
    """Which kinds of files are read, and how many values differ."""
    import numpy as np
    import tensorflow as tf

    from keras_cait.decoding import decode_image
    from keras_cait.preprocessing import load_image

    rows: dict[str, dict[str, Any]] = {}
    for kind, data in image_files.kinds().items():
        expected = load_image(data).astype(int)
        row: dict[str, Any] = {"load_image": "yes"}
        try:
            pixels = decode_image(tf.constant(data)).numpy()
        except tf.errors.InvalidArgumentError:
            row["graph"] = "refused"
        else:
            difference = np.abs(pixels - expected)
            row["graph"] = "yes"
            row["values that differ, %"] = round(
                100 * float((difference > 0).mean()), 2
            )
            row["largest difference"] = int(difference.max())
        rows[kind] = row
    return rows


def hostile() -> dict[str, dict[str, bytes]]:
    """Oversized, contradictory and damaged files by group."""
    return {
        "more than 50 megapixels": image_files.oversized(),
        "headers that lie": image_files.liars(),
        "bombs": image_files.bombs(),
        "cut, flipped, zeroed, extended": dict(image_files.damaged()),
    }


app = benchmark_app("images", __doc__)


@app.default
def main(*, output: Output = None) -> None:
    """Decodes images of all kinds and the worst of them."""
    tables: dict[str, Rows] = {"Formats": formats()}
    rows: dict[str, dict[str, Any]] = {}
    for name, megapixels, make in largest():
        data = make()
        rows[name] = {"megapixels": megapixels}
        for one in DECODERS:
            is_read, seconds, megabytes = measured([data], one)[0]
            rows[name][f"{one} s"] = seconds if is_read else "refused"
            rows[name][f"{one} MB"] = megabytes
    tables["Largest accepted images"] = rows
    rows = {}
    for group, files in hostile().items():
        for one in DECODERS:
            results = measured(list(files.values()), one)
            rows[f"{group}: {one}"] = {
                "files": len(results),
                "refused": sum(not is_read for is_read, _, _ in results),
                "slowest s": max(seconds for _, seconds, _ in results),
                "most MB": max(megabytes for _, _, megabytes in results),
            }
    tables["Oversized and damaged files"] = rows
    for title, table in tables.items():
        show(title, table)
    write(tables, output)


if __name__ == "__main__":
    run(app)
