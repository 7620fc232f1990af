"""Runs `.tflite` image classifiers with LiteRT."""

import os
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

SIGNATURE = "serving_default"
# Runs of the graph at once. Each has a copy of the weights, and more threads
# where there are more.
STREAMS = 4
# File in the archive behind a model, beside labels.txt.
CHECKSUM = "crc32.txt"


class LiteRTModel:
    """A `.tflite` image classifier, as `python -m export litert` writes it.

    A run of the graph uses all threads. Where a call needs many runs, several
    go on at once and share the threads, which makes them wait less for each
    other. Calls from several threads wait for each other.

    Args:
        path: the file.
        threads: int > 0. CPU threads; `None` is one for each core.
        signature: `"serving_default"`, or `"embedding"` for a file with it.

    Call arguments:
        images: array `(images, height, width, 3)` of any number of images, RGB
            in 0...255. Floats are rounded for a file that takes uint8.

    Returns:
        float32 array `(images, classes)` of probabilities, or `(images,
        embed_dim)` of embeddings.

    Attributes:
        image_size: `(height, width)` in pixels.
        batch_size: int. Images per run of the graph; calls are padded to it.
        classes: int.
        signatures: names of the signatures in the file.

    Raises:
        ValueError: the file is missing, damaged, or not an image classifier;
            or images of another shape.
        ImportError: LiteRT is not installed.

    Example:
    >>> LiteRTModel("model.tflite")(images)  # doctest: +SKIP
    """

    def __init__(
        self,
        path: str | Path,
        threads: int | None = None,
        signature: str = SIGNATURE,
    ):
        self.path = Path(path)
        verify_checksum(self.path)
        interpreter = open_interpreter(path, threads)
        self.threads = threads or os.cpu_count() or 1
        signatures = interpreter.get_signature_list()
        self.signatures = tuple(signatures)
        found = signatures.get(signature, {})
        outputs = found.get("outputs", [])
        if found.get("inputs") != ["images"] or outputs not in (
            ["probabilities"],
            ["logits"],
            ["embedding"],
        ):
            raise ValueError(
                f"{str(path)!r} is not an image classifier. Expected the "
                f"signature {signature!r} from images to probabilities or "
                f"logits, got {signatures}. Export a model with "
                "python -m export litert."
            )
        self.runner = interpreter.get_signature_runner(signature)
        self.streams = [self.runner]
        count = max(n for n in range(1, STREAMS + 1) if self.threads % n == 0)
        if count > 1:
            opened = [
                open_interpreter(path, self.threads // count)
                for _ in range(count)
            ]
            self.streams = [o.get_signature_runner(signature) for o in opened]
        # Runs write to and read from the memory of their interpreter.
        self.lock = threading.Lock()
        details = self.runner.get_input_details()["images"]
        self.batch_size, *self.image_shape = map(int, details["shape"])
        height, width, _ = self.image_shape
        self.image_size = (height, width)
        self.dtype = details["dtype"]
        (self.output,) = outputs
        shape = self.runner.get_output_details()[self.output]["shape"]
        self.classes = int(shape[-1])

    def __call__(self, images: Any) -> np.ndarray:
        images = np.asarray(images)
        if self.dtype == np.uint8 and images.dtype != np.uint8:
            images = np.clip(np.rint(images), 0, 255)  # 256 would become 0
        images = images.astype(self.dtype, copy=False)
        if images.ndim != 4 or [*images.shape[1:]] != self.image_shape:
            height, width, channels = self.image_shape
            raise ValueError(
                f"{str(self.path)!r} takes images of shape (images, {height}, "
                f"{width}, {channels}), got {images.shape}."
            )
        outputs = np.empty((len(images), self.classes), np.float32)
        is_over = threading.Event()

        def run(runner: Any, starts: range) -> None:
            for start in starts:
                if is_over.is_set():
                    return
                batch = images[start : start + self.batch_size]
                padding = [(0, self.batch_size - len(batch)), *[(0, 0)] * 3]
                found = runner(images=np.pad(batch, padding))[self.output]
                outputs[start : start + len(batch)] = found[: len(batch)]

        starts = range(0, len(images), self.batch_size)
        is_many = len(starts) >= len(self.streams)
        runners = self.streams if is_many else [self.runner]
        shares = [starts[i :: len(runners)] for i in range(len(runners))]
        with self.lock, ThreadPoolExecutor(len(runners)) as pool:
            try:
                list(pool.map(run, runners, shares))
            finally:  # an error or Ctrl-C ends the runs of the other streams
                is_over.set()
        return softmax(outputs) if self.output == "logits" else outputs

    def seconds(self) -> float:
        """Median seconds per run, over 5 runs or more in a second."""
        images = np.zeros((self.batch_size, *self.image_shape), self.dtype)
        times: list[float] = []
        with self.lock:
            for _ in range(2):
                self.runner(images=images)
            end = time.perf_counter() + 1
            while len(times) < 5 or time.perf_counter() < end:
                start = time.perf_counter()
                self.runner(images=images)
                times.append(time.perf_counter() - start)
        return float(np.median(times))


def open_interpreter(
    path: str | Path, threads: int | None = None, **options: Any
) -> Any:
    """A LiteRT `Interpreter` of a file.

    Args:
        path: the `.tflite` file.
        threads: int > 0. CPU threads; `None` is one for each core.
        options: other keyword arguments of `Interpreter`.

    Raises:
        ValueError: the file cannot be opened.
        ImportError: LiteRT is not installed.
    """
    interpreter = _interpreter()
    threads = os.cpu_count() or 1 if threads is None else threads
    if threads < 1:
        raise ValueError(f"threads must be at least 1. Got {threads}.")
    try:
        return interpreter(str(path), num_threads=threads, **options)
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{str(path)!r} is not a .tflite model, or is damaged: {reason}"
        ) from None


def _interpreter() -> type:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        raise ImportError(
            "Running .tflite files needs LiteRT: pip install ai-edge-litert"
        ) from None
    return Interpreter


# What a damaged file can do to the process that runs it.
TRIAL_SECONDS = 60
TRIAL = """
import sys
import numpy as np
from ai_edge_litert.interpreter import Interpreter

interpreter = Interpreter(sys.argv[1])
for name in interpreter.get_signature_list():
    runner = interpreter.get_signature_runner(name)
    details = runner.get_input_details()
    runner(**{k: np.zeros(d["shape"], d["dtype"]) for k, d in details.items()})
"""


def check_file(path: str | Path) -> None:
    """Refuses a damaged file before it runs in this process.

    Its checksum is verified if it has one, and it runs once in a process of
    its own, which damage may crash.

    Args:
        path: the `.tflite` file.

    Raises:
        ValueError: the file is damaged, or not a `.tflite` model.
    """
    _interpreter()
    verify_checksum(Path(path))
    try:
        trial = subprocess.run(
            [sys.executable, "-c", TRIAL, str(path)],
            capture_output=True,
            text=True,
            timeout=TRIAL_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise ValueError(
            f"{str(path)!r} does not run within {TRIAL_SECONDS} seconds."
        ) from None
    if trial.returncode:
        lines = trial.stderr.strip().splitlines()
        reason = lines[-1] if lines else "it crashes LiteRT"
        raise ValueError(
            f"{str(path)!r} is not a .tflite model, or is damaged: {reason}"
        )


def checksum(model: bytes) -> str:
    """CRC-32 of a model, stored in the archive of labels behind it.

    Example:
    >>> checksum(b"TFL3")
    'f220d784'
    """
    return f"{zlib.crc32(model):08x}"


def verify_checksum(path: Path) -> None:
    """Refuses a file whose checksum is wrong.

    Args:
        path: the `.tflite` file.

    Raises:
        ValueError: the file is missing or damaged.

    Example:
    >>> verify_checksum(Path("nowhere.tflite"))
    Traceback (most recent call last):
    ValueError: There is no file 'nowhere.tflite'.
    """
    if not path.is_file():
        raise ValueError(f"There is no file {str(path)!r}.")
    content = path.read_bytes()
    damaged = ValueError(f"{str(path)!r} is damaged: its checksum is wrong.")
    if not zipfile.is_zipfile(path):
        if CHECKSUM.encode() in content:  # its archive is broken
            raise damaged
        return  # a model of another program
    try:
        with zipfile.ZipFile(path) as archive:
            if CHECKSUM not in archive.namelist():
                return
            start = min(file.header_offset for file in archive.infolist())
            with archive.open(CHECKSUM) as file:
                expected = file.read(9).decode()  # of 8 digits
    except Exception:  # damage surfaces in many ways
        raise damaged from None
    if checksum(content[:start]) != expected:
        raise damaged


def softmax(logits: np.ndarray | Sequence) -> np.ndarray:
    """Softmax over the last axis.

    Example:
    >>> softmax([[0.0, 0.0]])
    array([[0.5, 0.5]])
    """
    logits = np.asarray(logits)
    exponents = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponents / exponents.sum(axis=-1, keepdims=True)
