"""JPEG decoded at a part of its size (`export saved-model --fast-jpeg`).

Time of decoding and resizing to 224 pixels, and what changes: the pixels of
one image at several sizes, and the quickstart's predictions for the validation
digits, enlarged to 448 pixels. Run it after `make quickstart`.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image

from benchmarks.command import Output, Rounds, benchmark_app, run
from benchmarks.image_files import encode
from benchmarks.interleave import take_turns
from benchmarks.results import Rows, show, write
from keras_cait.datasets import open_dataset
from keras_cait.decoding import decode_batch
from keras_cait.loading import load_classifier

ROOT = Path(__file__).parents[1]
IMAGE = ROOT / "tests/reference/preprocess/landscape_500x375.png"
SIZES = ((640, 480), (1280, 960), (2048, 1536), (4032, 3024))
SIDE = 448  # of a digit


def enlarged(image: Image.Image, size: tuple[int, int]) -> bytes:
    """A JPEG of another size."""
    return encode(image.convert("RGB").resize(size), "JPEG", quality=90)


def decoder(size: tuple[int, int], fast: bool) -> Callable[[Any], tf.Tensor]:
    """A compiled function of encoded images `(batch,)` to pixels."""
    return tf.function(
        lambda encoded: decode_batch(encoded, size, fast_jpeg=fast),
        input_signature=[tf.TensorSpec((None,), tf.string)],
    )


def image_rows(rounds: int) -> Rows:
    """Time of one image at several sizes, and the change of its pixels."""
    whole, fast = (decoder((224, 224), is_fast) for is_fast in (False, True))
    rows = {}
    for side in SIZES:
        encoded = [enlarged(Image.open(IMAGE), side)]
        change = np.abs(whole(encoded).numpy() - fast(encoded).numpy())
        timings = take_turns(
            {
                "whole": partial(whole, encoded),
                "fast": partial(fast, encoded),
            },
            rounds,
        )
        rows[f"{side[0]} x {side[1]}"] = {
            "whole, ms": 1e3 * timings["whole"].median,
            "fast, ms": 1e3 * timings["fast"].median,
            "largest change of a pixel": int(change.max()),
            "mean change": float(change.mean()),
        }
    return rows


def digit_rows(model: str) -> Rows:
    """The quickstart's accuracy both ways, and the change of its scores."""
    classifier = load_classifier(model)
    digits = open_dataset("digits", "validation")
    labels = np.array([label for _, label in digits])
    encoded = [
        enlarged(Image.fromarray(image), (SIDE, SIDE)) for image, _ in digits
    ]
    scores = {
        name: np.concatenate(
            [
                classifier.predict(decode(encoded[start : start + 100]))
                for start in range(0, len(encoded), 100)
            ]
        )
        for name, decode in (
            ("whole", decoder(classifier.image_size, False)),
            ("fast", decoder(classifier.image_size, True)),
        )
    }
    best = {name: values.argmax(axis=1) for name, values in scores.items()}
    change = np.abs(scores["whole"] - scores["fast"])
    return {
        name: {
            "top-1, %": 100 * float((best[name] == labels).mean()),
            "same class, %": 100 * float((best[name] == best["whole"]).mean()),
            "largest change of a score": float(change.max())
            if name == "fast"
            else 0.0,
        }
        for name in scores
    }


app = benchmark_app("jpeg", __doc__)


@app.default
def main(
    *,
    model: str = "runs/quickstart",
    rounds: Rounds = 15,
    output: Output = None,
) -> None:
    """Measures both ways of decoding."""
    tables = {
        "One image": image_rows(rounds),
        "Digits of 448 x 448": digit_rows(model),
    }
    for title, rows in tables.items():
        show(title, rows)
    write(tables, output, rounds)


if __name__ == "__main__":
    run(app)
