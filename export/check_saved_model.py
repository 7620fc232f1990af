"""All signatures of a SavedModel beside the Keras model.

The SavedModel runs in a new process, in which neither Keras nor keras_cait can
be imported, as on the server.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import keras_cait
from export.decoding import decode_pictures

BATCH = 8  # the largest that `export/run_signatures.py` asks for
# Of the largest value: more is no rounding of float32, or of shorter types.
TOLERANCE, ROUGH_TOLERANCE = 1e-4, 0.1
# Whatever imports one of these there, fails.
ALONE = """
import runpy, sys
sys.modules["keras"] = sys.modules["keras_cait"] = None
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@dataclass(frozen=True)
class Row:
    """One output of one signature at one batch size, beside the Keras model.

    Differences are relative to the largest expected value; `top1` and `top5`
    are the shares of pictures whose best class and whose five best classes
    agree (`None` for outputs that name no classes).
    """

    signature: str
    output: str
    batch_size: int
    max_difference: float
    mean_difference: float
    top1: float | None
    top5: float | None


def check_signatures(version, model, pictures):
    """Runs a SavedModel in a new process, and compares all its answers.

    Args:
        version: path of the SavedModel with its `manifest.json`.
        model: the `CaiT` it was made from.
        pictures: list of bytes, encoded pictures; they are repeated until
            they fill the largest batch.

    Returns:
        List of `Row`.

    Raises:
        ValueError: it does not run with TensorFlow alone, or the answers are
            not the Keras model's.
    """
    version = Path(version)
    encoded = (BATCH * list(pictures))[:BATCH]
    answers = ask(version, encoded)
    manifest = json.loads((version / "manifest.json").read_text())
    precisions = {manifest["precision"], model.dtype_policy.compute_dtype}
    tolerance = TOLERANCE if precisions == {"float32"} else ROUGH_TOLERANCE
    labels = (version / "assets.extra" / "labels.txt").read_text().splitlines()
    images = decode_pictures(tf.constant(encoded), model.image_shape[:2])
    of_pictures = keras_answers(model, images)
    of_pixels = keras_answers(model, answers.pop("pixels"))

    rows = []
    for key, found in answers.items():
        signature, output, size = key.split("/")
        if output == "classes":  # compared with their scores
            continue
        expected = of_pixels if signature == "pixels" else of_pictures
        probabilities = expected["probabilities"][: int(size)]
        top1 = top5 = None
        if output == "scores":
            classes = answers[f"{signature}/classes/{size}"]
            indices = [
                [labels.index(name.decode()) for name in row] for row in classes
            ]
            value = np.take_along_axis(probabilities, np.array(indices), 1)
            top1, top5 = agreement(np.array(indices), probabilities)
        else:
            value = expected[output][: int(size)]
        if output in ("logits", "probabilities"):
            top1, top5 = agreement(np.argsort(-found), probabilities)
        difference = np.abs(found - value) / np.abs(value).max()
        row = Row(
            signature,
            output,
            int(size),
            float(difference.max()),
            float(difference.mean()),
            top1,
            top5,
        )
        if not row.max_difference <= tolerance:
            raise ValueError(
                f"{output} of {signature} at batch {size} differs from the "
                f"Keras model by {row.max_difference:.1e} of its largest "
                f"value; {tolerance:.0e} would be rounding. Compare it with "
                "the weights it was exported from, or export it again."
            )
        rows.append(row)
    return rows


def ask(version, encoded):
    """The arrays that `export/run_signatures.py` writes."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / str(i) for i in range(len(encoded))]
        for file, one in zip(files, encoded, strict=True):
            file.write_bytes(one)
        program = Path(__file__).with_name("run_signatures.py")
        output = Path(folder) / "answers.npz"
        command = [sys.executable, "-P", "-c", ALONE, program, version]
        process = subprocess.run(
            [*command, output, *files],
            capture_output=True,
            text=True,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        )
        if process.returncode:
            lines = process.stderr.strip().splitlines() or ["no message"]
            raise ValueError(
                f"{version} does not run with TensorFlow alone: {lines[-1]}"
            )
        with np.load(output) as file:
            return dict(file)


def keras_answers(model, images):
    """All outputs of the signatures, by the Keras model."""
    head = model.get_layer("head")
    embedding = keras.Model(model.input, head.input).predict_on_batch(images)
    kernel, bias = head.get_weights()
    logits = embedding @ kernel + bias
    return {
        "embedding": embedding,
        "logits": logits,
        "probabilities": tf.nn.softmax(logits).numpy(),
        "attention": keras_cait.class_attention_maps(model, images),
    }


def agreement(indices, probabilities):
    """Shares of pictures with the same best class, and the same best five."""
    best = probabilities.argsort(axis=1)[:, ::-1]
    count = min(5, indices.shape[1])
    same = [
        set(a) == set(b)
        for a, b in zip(indices[:, :count], best[:, :count], strict=True)
    ]
    return float((indices[:, 0] == best[:, 0]).mean()), sum(same) / len(same)


def table(rows):
    """The rows as aligned text, the batch sizes of an output together."""
    lines = [
        "signature        output         batch  max diff  mean diff  "
        "top-1  top-5"
    ]
    for row in rows:
        shares = [
            "" if share is None else f"{share:.0%}"
            for share in (row.top1, row.top5)
        ]
        lines.append(
            f"{row.signature:15}  {row.output:13}  {row.batch_size:5}  "
            f"{row.max_difference:8.1e}  {row.mean_difference:9.1e}  "
            f"{shares[0]:>5}  {shares[1]:>5}"
        )
    return "\n".join(lines)
