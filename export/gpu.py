"""How much of a `.tflite` file LiteRT's GPU engine runs.

It is the engine of Android's `Accelerator.GPU`, of Metal on iOS, and of WebGPU
in browsers. The wheel of ai-edge-litert has it for WebGPU on Vulkan, Metal and
Direct3D, so a desktop's GPU or a software driver tells what others will take.
"""

import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from export.options import GpuPrecision

PROGRAM = Path(__file__).with_name("run_on_gpu.py")


@dataclass(frozen=True)
class GpuRun:
    """How the engine runs a file.

    Attributes:
        device: the GPU, or the software that acts as one.
        left_out: operations that it leaves to the CPU.
        scores: float32 array `(images, classes)`; `None` if the device failed,
            as slow ones do after two minutes.
    """

    device: str
    left_out: int
    scores: np.ndarray | None


def run_on_gpu(
    path: str | Path,
    images: np.ndarray,
    precision: GpuPrecision = "float16",
    timeout: float = 600.0,
) -> GpuRun | None:
    """Runs a file on this computer's GPU, in a process of its own.

    Args:
        path: a `.tflite` file. Only its first signature runs.
        images: array `(images, height, width, 3)`, RGB in 0...255; a multiple
            of the file's batch size.
        precision: of the computation on the GPU. Devices without float16
            compute in float32.
        timeout: seconds after which the file is given up.

    Returns:
        `None` if the engine finds no GPU or does not take the file.

    Example:
    >>> run_on_gpu("model.tflite", images).left_out  # doctest: +SKIP
    0
    """
    with tempfile.TemporaryDirectory() as folder:
        inputs, outputs = Path(folder, "images.npy"), Path(folder, "scores.npy")
        np.save(inputs, images)
        command = [sys.executable, PROGRAM, path, inputs, outputs, precision]
        try:
            ended = subprocess.run(
                command, capture_output=True, text=True, timeout=timeout
            )
        except subprocess.TimeoutExpired:
            return None
        log = ended.stderr
        device = re.search(r"Selected adapter: ([^,\n]*)", log)
        if not device or "compiled" not in ended.stdout:
            return None
        rest = re.search(r"remaining (\d+) operations will run on the CPU", log)
        return GpuRun(
            device[1],
            int(rest[1]) if rest else 0,
            None if ended.returncode else np.load(outputs),
        )
