"""Inference: images per second of keras-cait and its alternatives.

The machine's own rate is that of a float32 product of two 2048 x 2048 matrices.
"""

import os
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from cyclopts import App, Parameter

from benchmarks.interleave import Runner, Timing, interleave, relative
from benchmarks.results import Count, Output, Rounds, Rows, show, write

GMACS = {"XXS24": 2.53, "S24": 9.35}  # published, at 224 x 224
SIZE = 224

Run = Callable[[], object]


def keras_cait_runner(
    variant: str, batch_size: int, xla: bool, dtype: str
) -> Run:
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import keras

    import keras_cait

    keras.config.set_dtype_policy(dtype)
    build = getattr(keras_cait, f"CaiT_{variant}")
    model = build(
        weights=None, include_preprocessing=False, classifier_activation=None
    )
    return tensorflow_runner(model, batch_size, xla)


def kerasformers_runner(variant: str, batch_size: int) -> Run:
    from kerasformers.models.cait import CaiTImageClassify

    from keras_cait.models import VARIANTS

    config = VARIANTS[variant]
    model = CaiTImageClassify(
        embed_dim=config.embed_dim,
        depth=config.depth,
        num_heads=config.num_heads,
        include_normalization=False,
    )
    return tensorflow_runner(model, batch_size, xla=True)


def tensorflow_runner(model: Any, batch_size: int, xla: bool) -> Run:
    import tensorflow as tf

    images = tf.random.normal((batch_size, SIZE, SIZE, 3))
    step = tf.function(
        lambda images: model(images, training=False), jit_compile=xla
    )
    return lambda: step(images).numpy()


def timm_runner(variant: str, batch_size: int, compiled: bool) -> Run:
    import torch

    model, images = timm_model(variant, batch_size)
    if compiled:
        model = torch.compile(model)

    def forward() -> None:
        with torch.inference_mode():
            model(images)

    return forward


def onnx_runtime_runner(variant: str, batch_size: int) -> Run:
    import onnxruntime

    path, images = timm_onnx(variant, batch_size)
    session = onnxruntime.InferenceSession(
        path, providers=["CPUExecutionProvider"]
    )
    return lambda: session.run(None, {"images": images.numpy()})


def openvino_runner(variant: str, batch_size: int) -> Run:
    import openvino

    path, images = timm_onnx(variant, batch_size)
    # OpenVINO computes in bfloat16 by default where the CPU supports it.
    model = openvino.compile_model(
        path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    return lambda: model(images.numpy())


def timm_model(variant: str, batch_size: int) -> tuple[Any, Any]:
    import timm
    import torch

    size = 384 if variant == "XS24" else SIZE  # published only at 384
    model = timm.create_model(f"cait_{variant.lower()}_{size}").eval()
    return model, torch.randn(batch_size, 3, size, size)


def timm_onnx(variant: str, batch_size: int) -> tuple[str, Any]:
    import torch

    model, images = timm_model(variant, batch_size)
    path = f"{tempfile.mkdtemp()}/cait.onnx"
    torch.onnx.export(
        model, (images,), path, input_names=["images"], verbose=False
    )
    return path, images


def matrix_product_runner(variant: str, batch_size: int) -> Run:
    """Measures the machine's own rate."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import tensorflow as tf

    matrix = tf.random.normal((2048, 2048))
    return lambda: tf.matmul(matrix, matrix).numpy()


RUNNERS: dict[str, Runner] = {
    "matrix product": ("tensorflow", matrix_product_runner),
    "keras-cait, graph": (
        "tensorflow",
        partial(keras_cait_runner, xla=False, dtype="float32"),
    ),
    "keras-cait, XLA": (
        "tensorflow",
        partial(keras_cait_runner, xla=True, dtype="float32"),
    ),
    "keras-cait, XLA, bfloat16": (
        "tensorflow",
        partial(keras_cait_runner, xla=True, dtype="mixed_bfloat16"),
    ),
    "timm eager": ("timm", partial(timm_runner, compiled=False)),
    "timm compiled": ("timm", partial(timm_runner, compiled=True)),
    "ONNX Runtime": ("onnxruntime", onnx_runtime_runner),
    "OpenVINO": ("openvino", openvino_runner),
    "KerasFormers, XLA": ("kerasformers", kerasformers_runner),
}


def rows(
    variant: str, batch_size: int, timings: dict[str, Timing | str]
) -> Rows:
    """Images per second, relative to timm and to the machine's own rate."""
    product = timings["matrix product"]
    found = {}
    for name, timing in timings.items():
        if isinstance(timing, str):
            found[name] = {"images/s": timing}
        elif isinstance(product, Timing) and name != "matrix product":
            rate = 2 * 2048**3 / product.seconds
            speed = batch_size / timing.seconds
            found[name] = {
                "images/s": speed,
                "timm eager = 1": relative(timings["timm eager"], timing),
                "% of a matrix product": 2e11 * GMACS[variant] * speed / rate,
                "peak MB": timing.peak_bytes / 1e6,
            }
    return found


app = App(
    name="python -m benchmarks.inference",
    help=__doc__,
    default_parameter=Parameter(consume_multiple=True),
)


@app.default
def main(
    *,
    variants: tuple[Literal["XXS24", "S24"], ...] = ("XXS24", "S24"),
    batch_sizes: tuple[Count, ...] = (1, 8, 32),
    rounds: Rounds = 7,
    output: Output = None,
) -> None:
    """Times CaiT in keras-cait, timm, ONNX Runtime, OpenVINO and KerasFormers.

    Args:
        variants: Models to time.
        batch_sizes: Images per run.
    """
    tables = {}
    for variant in variants:
        for batch_size in batch_sizes:
            timings = interleave(RUNNERS, (variant, batch_size), rounds)
            title = f"CaiT-{variant} at {SIZE}, batch {batch_size}"
            tables[title] = rows(variant, batch_size, timings)
            show(title, tables[title])
    write(tables, output)


if __name__ == "__main__":
    from keras_cait.command_line import run

    run(app)
