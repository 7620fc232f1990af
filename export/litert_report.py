"""How a `.tflite` file runs here, and where it leaves the Keras model."""

import re
import warnings
from dataclasses import dataclass

import numpy as np
from ai_edge_litert.interpreter import OpResolverType

from export.litert_runner import LiteRTClassifier, open_file
from keras_cait import intermediate_features

THREADS = (1, 2)
BLOCK = re.compile(r"((self|class)_attention_block_\d+)/output")


@dataclass(frozen=True)
class Report:
    """What is known of one file.

    `operations` counts all, `left_out` those that XNNPACK does not take and
    `partitions` the parts into which they cut the rest: 0 and 1 are the whole
    graph. `milliseconds` are medians of one call, by the number of threads.
    `blocks` are, by name, cosine similarity and signal-to-noise ratio in dB of
    the residual stream after each block, against the Keras model's.
    """

    operations: int
    left_out: int
    partitions: int
    milliseconds: dict
    blocks: dict


def report(path, model, images):
    """Runs a file by itself and beside the Keras model.

    Args:
        path: path of a `.tflite` file of `export.litert`.
        model: the `CaiT` that it was made from.
        images: array `(pictures, height, width, 3)`, RGB in 0...255.

    Returns:
        `Report`.

    Raises:
        ValueError: the file is none, or was made from another model.

    Example:
    >>> report("model.tflite", model, images).partitions  # doctest: +SKIP
    1
    """
    classifiers = {n: LiteRTClassifier(path, n) for n in THREADS}
    batch, *shape = classifiers[THREADS[0]].shape
    if tuple(shape) != model.image_shape:
        raise ValueError(
            f"{path} takes images of shape {tuple(shape)}, the model takes "
            f"{model.image_shape}. Give the model that it was made from."
        )
    images = np.resize(
        images, (max(batch, len(images) // batch * batch), *shape)
    )
    return Report(
        *operations(path),
        {n: 1e3 * classify.seconds() for n, classify in classifiers.items()},
        blocks(path, model, images),
    )


def blocks(path, model, images):
    """Cosine similarity and SNR of each block."""
    found = block_outputs(path, images)
    names = [
        layer.name
        for layer in model.layers
        if layer.name.startswith(("self_attention_", "class_attention_"))
    ]
    expected = dict(
        zip(names, intermediate_features(model, names)(images), strict=True)
    )
    expected = {
        name: np.asarray(x, "float64").reshape(-1, model.embed_dim)
        for name, x in expected.items()
    }
    shapes = (
        {name: x.shape for name, x in y.items()} for y in (found, expected)
    )
    if len({str(sorted(one.items())) for one in shapes}) > 1:
        raise ValueError(
            f"{path} has {len(found)} blocks, the model {len(expected)}, or "
            "they differ in width. Give the model that the file was made from."
        )
    return {
        name: {
            "cosine": cosine(found[name], expected[name]),
            "snr": snr(found[name], expected[name]),
        }
        for name in names
    }


def operations(path):
    """How many operations a file has, and in how many parts XNNPACK runs it.

    Args:
        path: path of a `.tflite` file. Of several signatures, the first one
            counts.

    Returns:
        Triple of ints: all operations, those that XNNPACK does not take, and
        the parts into which they cut the rest. 0 and 1 are the whole graph.
    """
    interpreter = open_file(path)
    interpreter.allocate_tensors()
    every = interpreter._get_ops_details()
    delegates = [one for one in every if one["op_name"] == "DELEGATE"]
    others = [one for one in every if one["op_name"] != "DELEGATE"]
    # Backwards from the answer: what a part of XNNPACK makes is made by it,
    # the rest by operations of their own.
    makers = {}
    for operation in others + delegates:
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


def block_outputs(path, images):
    """The residual stream after each block of a file.

    Args:
        path: path of a `.tflite` file.
        images: array `(pictures, height, width, 3)`, RGB in 0...255; as many
            as the file takes at a time, or a multiple.

    Returns:
        dict of names of blocks to float32 arrays `(tokens, embed_dim)`, of
        all pictures, first block first.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the memory that this takes
        interpreter = open_file(
            path,
            experimental_preserve_all_tensors=True,
            # XNNPACK keeps what lies between to itself.
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
    answers = {name: [] for name in indices}
    batch = details["shape"][0]
    for start in range(0, len(images), batch):
        some = np.asarray(images[start : start + batch], details["dtype"])
        interpreter.set_tensor(details["index"], some)
        interpreter.invoke()
        for name, index in indices.items():
            answers[name].append(interpreter.get_tensor(index))
    return {name: np.concatenate(some) for name, some in answers.items()}


def cosine(found, expected):
    norms = np.linalg.norm(found) * np.linalg.norm(expected)
    return float(np.vdot(found, expected) / norms)


def snr(found, expected):
    """Signal-to-noise ratio in dB."""
    noise = np.square(found - expected).sum()
    return float(10 * np.log10(np.square(expected).sum() / noise))


def run_lines(reports):
    """Cells of a table: how each file runs; the head comes first."""
    head = ("", "operations", "not XNNPACK's", "parts")
    yield (*head, *(f"ms, {n} thread{'s' * (n > 1)}" for n in THREADS))
    for name, one in reports.items():
        yield (
            *(name, str(one.operations), str(one.left_out)),
            *(
                str(one.partitions),
                *(f"{one.milliseconds[n]:.2f}" for n in THREADS),
            ),
        )


def block_lines(reports):
    """Cells of a table: SNR in dB and cosine of each block, by file."""
    yield ("dB, cosine", *reports)
    for block in next(iter(reports.values())).blocks:
        cells = (one.blocks[block] for one in reports.values())
        yield (
            block,
            *(f"{cell['snr']:.1f}, {cell['cosine']:.5f}" for cell in cells),
        )
