"""Checks every signature of a SavedModel against the Keras model.

The SavedModel runs in a new process that cannot import Keras or keras_cait, as
on a server.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

import keras_cait
from export.exportable import image_size
from export.predictors import to_pixels
from keras_cait.loading import classifier

LARGEST_BATCH = 8  # of `export/run_signatures.py`
# Maximum difference relative to the largest value, for float32 / for bfloat16.
TOLERANCE, BFLOAT16_TOLERANCE = 1e-4, 0.1
# Runs a program in which importing Keras or keras_cait fails.
WITHOUT_KERAS = """
import runpy, sys
sys.modules["keras"] = sys.modules["keras_cait"] = None
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@dataclass(frozen=True)
class SignatureCheck:
    """One output of one signature at one batch size, against the Keras model.

    Attributes:
        signature: name of the signature.
        output: name of the output.
        batch_size: number of images.
        max_difference: largest absolute difference, relative to the largest
            expected value.
        mean_difference: mean absolute difference, relative to the same value.
        top1: share of images in 0...1 with the same best class; `None` for
            outputs without classes.
        top5: share of images in 0...1 with the same set of five best classes;
            `None` for outputs without classes.
    """

    signature: str
    output: str
    batch_size: int
    max_difference: float
    mean_difference: float
    top1: float | None
    top5: float | None


def check_saved_model(
    version: str | Path, model: keras_cait.CaiT, images: Sequence[bytes]
) -> list[SignatureCheck]:
    """Runs a SavedModel in a new process and compares all its outputs.

    Args:
        version: folder of the SavedModel, with its `manifest.json`.
        model: the `CaiT` it was made from.
        images: encoded images, repeated until they fill the largest batch.

    Returns:
        One check for each output of each signature at each batch size.

    Raises:
        ValueError: the SavedModel does not run without Keras, or its outputs
            differ from the Keras model's.
    """
    version = Path(version)
    encoded = (LARGEST_BATCH * list(images))[:LARGEST_BATCH]
    outputs = run_signatures(version, encoded)
    manifest = json.loads((version / "manifest.json").read_text())
    precisions = {manifest["precision"], model.dtype_policy.compute_dtype}
    tolerance = TOLERANCE if precisions == {"float32"} else BFLOAT16_TOLERANCE
    text = (version / "assets.extra" / "labels.txt").read_text(encoding="utf-8")
    labels = text.splitlines()
    size = image_size(model)
    expected_of_bytes = keras_outputs(model, to_pixels(encoded, size))
    expected_of_pixels = keras_outputs(model, outputs.pop("pixels"))

    for key in [key for key in outputs if "/error/" in key]:
        errors = outputs.pop(key)
        if any(errors):
            raise ValueError(
                f"{str(version)!r} refuses an image that the Keras model "
                f"takes: {max(errors).decode()}"
            )

    checks = []
    for key, found in outputs.items():
        signature, output, batch_size = key.split("/")
        count = int(batch_size)
        if output == "classes":  # checked together with the scores
            continue
        expected = (
            expected_of_pixels if signature == "pixels" else expected_of_bytes
        )
        probabilities = expected["probabilities"][:count]
        top1 = top5 = None
        if output == "scores":
            classes = outputs[f"{signature}/classes/{count}"]
            indices = np.array(
                [
                    [labels.index(name.decode()) for name in row]
                    for row in classes
                ]
            )
            value = np.take_along_axis(probabilities, indices, 1)
            top1, top5 = agreement(indices, probabilities)
        else:
            value = expected[output][:count]
        if output in ("logits", "probabilities"):
            best = np.argsort(-found, kind="stable")
            top1, top5 = agreement(best, value)
        difference = np.abs(found - value) / np.abs(value).max()
        check = SignatureCheck(
            signature,
            output,
            count,
            float(difference.max()),
            float(difference.mean()),
            top1,
            top5,
        )
        if not check.max_difference <= tolerance:
            raise ValueError(
                f"Output {output!r} of signature {signature!r} differs from "
                f"the Keras model by {check.max_difference:.1e} of its largest "
                f"value at batch size {count}; rounding explains at most "
                f"{tolerance:.0e}. Check that {str(version)!r} was exported "
                "from this model, or export it again."
            )
        checks.append(check)
    return checks


def run_signatures(
    version: Path, encoded: Sequence[bytes], python: str = sys.executable
) -> dict[str, np.ndarray]:
    """Runs `export/run_signatures.py`, and reads the arrays it writes.

    Args:
        version: folder of the SavedModel, with its `manifest.json`.
        encoded: encoded images, as many as the largest batch.
        python: the interpreter that runs it.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / str(i) for i in range(len(encoded))]
        for file, image in zip(files, encoded, strict=True):
            file.write_bytes(image)
        program = Path(__file__).with_name("run_signatures.py")
        output = Path(folder) / "outputs.npz"
        command = [python, "-P", "-c", WITHOUT_KERAS, program, version]
        process = subprocess.run(
            [*command, output, *files],
            capture_output=True,
            text=True,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        )
        if process.returncode:
            lines = process.stderr.strip().splitlines() or ["no message"]
            raise ValueError(
                f"{str(version)!r} does not run without Keras: {lines[-1]}"
            )
        with np.load(output) as file:
            return dict(file)


def keras_outputs(
    model: keras_cait.CaiT, images: np.ndarray
) -> dict[str, np.ndarray]:
    """The outputs of all signatures, computed by the Keras model."""
    head = model.get_layer("head")
    embedding = keras.Model(model.input, head.input).predict_on_batch(images)
    kernel, bias = head.get_weights()
    logits = embedding @ kernel + bias
    return {
        "embedding": embedding,
        "logits": logits,
        "probabilities": np.asarray(classifier(model).predict(images)),
        "attention": keras_cait.class_attention_maps(model, images),
    }


def agreement(indices: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """Shares of images with the same best class and the same five best.

    Of equal scores, such as 1 of a sigmoid, the first is best, as everywhere.

    Example:
    >>> agreement(np.array([[0, 1]]), np.array([[1.0, 1.0]]))
    (1.0, 1.0)
    """
    best = np.argsort(-expected, kind="stable")
    count = min(5, indices.shape[1])
    same = [
        set(a) == set(b)
        for a, b in zip(indices[:, :count], best[:, :count], strict=True)
    ]
    return float((indices[:, 0] == best[:, 0]).mean()), sum(same) / len(same)


def checks_table(checks: Sequence[SignatureCheck]) -> str:
    """The checks as aligned text, one line each."""
    lines = [
        "signature        output         batch  max diff  mean diff  "
        "top-1  top-5"
    ]
    for check in checks:
        top1, top5 = (
            "" if share is None else f"{share:.0%}"
            for share in (check.top1, check.top5)
        )
        lines.append(
            f"{check.signature:15}  {check.output:13}  {check.batch_size:5}  "
            f"{check.max_difference:8.1e}  {check.mean_difference:9.1e}  "
            f"{top1:>5}  {top5:>5}"
        )
    return "\n".join(lines)
