"""How a `.tflite` file runs here, and where it differs from the Keras model."""

import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
from ai_edge_litert.interpreter import OpResolverType

import keras_cait
from export.folding import center
from export.gpu import run_on_gpu
from keras_cait import intermediate_features
from keras_cait.litert import LiteRTModel, open_interpreter

THREADS = (1, 2)
BLOCK = re.compile(r"((self|class)_attention_block_\d+)/output")


class BlockDifference(TypedDict):
    """Cosine similarity, and signal-to-noise ratio in dB."""

    cosine: float
    snr: float


@dataclass(frozen=True)
class OnGpu:
    """How LiteRT's GPU engine runs a file.

    Attributes:
        device: the GPU, or the software that acts as one.
        left_out: ops that the engine leaves to the CPU.
        max_difference: largest difference of any score from XNNPACK's, on one
            batch, computed in float16 where the device can; `None` if the
            device failed.
    """

    device: str
    left_out: int
    max_difference: float | None


@dataclass(frozen=True)
class Report:
    """Facts about one `.tflite` file.

    Attributes:
        operations: number of ops.
        left_out: ops that XNNPACK does not run.
        partitions: parts into which those cut the graph. With `left_out` 0
            and `partitions` 1, XNNPACK runs the whole graph.
        milliseconds: median time of one call, by number of threads.
        blocks: difference of the residual stream after each block from the
            Keras model's, by name of the block.
        gpu: of LiteRT's GPU engine; `None` if there is no GPU.
    """

    operations: int
    left_out: int
    partitions: int
    milliseconds: dict[int, float]
    blocks: dict[str, BlockDifference]
    gpu: OnGpu | None


def report(
    path: str | Path, model: keras_cait.CaiT, images: np.ndarray
) -> Report:
    """Runs a file and compares it with the Keras model.

    Args:
        path: a `.tflite` file written by `python -m export litert`.
        model: the `CaiT` it was made from.
        images: array `(images, height, width, 3)`, RGB in 0...255.

    Raises:
        ValueError: the file is not an image classifier, or was made from
            another model.

    Example:
    >>> report("model.tflite", model, images).partitions  # doctest: +SKIP
    1
    """
    runners = {threads: LiteRTModel(path, threads) for threads in THREADS}
    runner = runners[THREADS[0]]
    batch = runner.batch_size
    count = max(batch, len(images) // batch * batch)
    images = np.resize(images, (count, *images.shape[1:]))
    return Report(
        *operations(path),
        {n: 1e3 * runner.seconds() for n, runner in runners.items()},
        compare_blocks(path, model, images),
        on_gpu(runner, images[:batch]),
    )


def on_gpu(runner: LiteRTModel, images: np.ndarray) -> OnGpu | None:
    """Runs a batch on this computer's GPU, and compares it with XNNPACK."""
    run = run_on_gpu(runner.path, images)
    if run is None:
        return None
    difference = None
    if run.scores is not None:
        scores = runner.runner(images=images.astype(runner.dtype))
        difference = float(np.abs(run.scores - scores[runner.output]).max())
    return OnGpu(run.device, run.left_out, difference)


def operations(path: str | Path) -> tuple[int, int, int]:
    """Counts the ops of a file, and the parts that XNNPACK runs.

    Args:
        path: a `.tflite` file. Only its first signature counts.

    Returns:
        All ops, those that XNNPACK does not run, and the parts into which
        those cut the graph. 0 and 1: XNNPACK runs the whole graph.

    Raises:
        ValueError: the file is not a `.tflite` model.
    """
    interpreter = open_interpreter(path)
    interpreter.allocate_tensors()
    details = interpreter._get_ops_details()
    partitions = [one for one in details if one["op_name"] == "DELEGATE"]
    others = [one for one in details if one["op_name"] != "DELEGATE"]
    # Walk back from the outputs. A tensor made by a partition and also by an op
    # is made by the partition, which has replaced the op.
    makers = {}
    for operation in others + partitions:
        makers |= dict.fromkeys(operation["outputs"].tolist(), operation)
    waiting = [one["index"] for one in interpreter.get_output_details()]
    executed = {}
    while waiting:
        operation = makers.get(waiting.pop())
        if operation and operation["index"] not in executed:
            executed[operation["index"]] = operation["op_name"]
            waiting += operation["inputs"].tolist()
    parts = list(executed.values()).count("DELEGATE")
    return len(others), len(executed) - parts, parts


def compare_blocks(
    path: str | Path, model: keras_cait.CaiT, images: np.ndarray
) -> dict[str, BlockDifference]:
    """Compares the output of each block with the Keras model's.

    Without the mean of each token's channels, which no layer reads: the files
    do not have it.
    """
    found = block_outputs(path, images)
    blocks = model.self_attention_blocks + model.class_attention_blocks
    names = [block.name for block in blocks]
    features = intermediate_features(model, names)(images)
    expected = {
        name: center(np.asarray(x, "float64")).reshape(-1, model.embed_dim)
        for name, x in zip(names, features, strict=True)
    }
    if shapes(found) != shapes(expected):
        raise ValueError(
            f"{str(path)!r} has {len(found)} blocks and the model "
            f"{len(expected)}, or their widths differ. Give the model it was "
            "made from, or export it again."
        )
    return {
        name: {
            "cosine": cosine(found[name], expected[name]),
            "snr": snr(found[name], expected[name]),
        }
        for name in names
    }


def block_outputs(
    path: str | Path, images: np.ndarray
) -> dict[str, np.ndarray]:
    """The residual stream after each block of a file.

    Args:
        path: a `.tflite` file.
        images: array `(images, height, width, 3)`, RGB in 0...255; a multiple
            of the file's batch size.

    Returns:
        float32 arrays `(tokens, embed_dim)` of all images, by name of the
        block.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about memory
        interpreter = open_interpreter(
            path,
            experimental_preserve_all_tensors=True,
            # XNNPACK does not keep tensors between its ops.
            experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        )
    interpreter.allocate_tensors()
    (details,) = interpreter.get_input_details()
    indices = {
        match[1]: tensor["index"]
        for tensor in interpreter.get_tensor_details()
        if (match := BLOCK.match(tensor["name"]))
        and tensor["dtype"] == np.float32
    }
    outputs = {name: [] for name in indices}
    batch_size = details["shape"][0]
    for start in range(0, len(images), batch_size):
        batch = np.asarray(images[start : start + batch_size], details["dtype"])
        interpreter.set_tensor(details["index"], batch)
        interpreter.invoke()
        for name, index in indices.items():
            outputs[name].append(interpreter.get_tensor(index))
    return {name: np.concatenate(parts) for name, parts in outputs.items()}


def shapes(arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    """The shapes of arrays."""
    return {name: array.shape for name, array in arrays.items()}


def cosine(found: np.ndarray, expected: np.ndarray) -> float:
    """Cosine similarity of two arrays."""
    norms = np.linalg.norm(found) * np.linalg.norm(expected)
    return float(np.vdot(found, expected) / norms)


def snr(found: np.ndarray, expected: np.ndarray) -> float:
    """Signal-to-noise ratio in dB."""
    noise = np.square(found - expected).sum()
    return float(10 * np.log10(np.square(expected).sum() / noise))


def run_lines(reports: Mapping[str, Report]) -> Iterator[list[str]]:
    """Cells of a table of how each file runs; the head comes first."""
    times = [f"ms, {n} thread{'s' * (n > 1)}" for n in THREADS]
    gpu = ["not on GPU", "GPU difference"]
    yield ["", "ops", "not on XNNPACK", "partitions", *gpu, *times]
    for name, one in reports.items():
        counts = [one.operations, one.left_out, one.partitions]
        times = [f"{one.milliseconds[n]:.2f}" for n in THREADS]
        yield [name, *map(str, counts), *gpu_cells(one.gpu), *times]


def gpu_cells(gpu: OnGpu | None) -> list[str]:
    """Operations that are not on the GPU, and the difference of scores."""
    if gpu is None:
        return ["no GPU", ""]
    if gpu.max_difference is None:
        return [str(gpu.left_out), "failed"]
    return [str(gpu.left_out), f"{gpu.max_difference:.1e}"]


def block_lines(reports: Mapping[str, Report]) -> Iterator[list[str]]:
    """Cells of a table of SNR and cosine of each block, by file."""
    yield ["dB, cosine", *reports]
    for block in next(iter(reports.values())).blocks:
        cells = [one.blocks[block] for one in reports.values()]
        yield [block] + [
            f"{cell['snr']:.1f}, {cell['cosine']:.5f}" for cell in cells
        ]
