"""Images a second of CaiT, ours beside what a user would pick instead.

    python -m benchmarks.inference --variants S24 --output inference.json

The contestants that are installed take turns (`benchmarks/turns.py`), and the
fastest round counts. The machine's own rate is that of a float32 matrix
product of 2048 x 2048.
"""

import argparse
import os
from functools import partial

from benchmarks.record import show, write
from benchmarks.turns import take_turns

GMACS = {"XXS24": 2.53, "S24": 9.35}  # published, at 224 x 224
SIZE = 224


def keras_cait_contestant(variant, batch_size, xla, dtype):
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import keras
    import tensorflow as tf

    import keras_cait

    keras.config.set_dtype_policy(dtype)
    build = getattr(keras_cait, f"CaiT_{variant}")
    model = build(
        weights=None, include_preprocessing=False, classifier_activation=None
    )
    return tensorflow_runner(tf, model, batch_size, xla)


def kerasformers_contestant(variant, batch_size):
    import tensorflow as tf
    from kerasformers.models.cait import CaiTImageClassify

    from keras_cait.models import VARIANTS

    embed_dim, depth, num_heads, *_ = VARIANTS[variant]
    model = CaiTImageClassify(
        embed_dim=embed_dim,
        depth=depth,
        num_heads=num_heads,
        include_normalization=False,
    )
    return tensorflow_runner(tf, model, batch_size, xla=True)


def tensorflow_runner(tf, model, batch_size, xla):
    images = tf.random.normal((batch_size, SIZE, SIZE, 3))
    step = tf.function(
        lambda images: model(images, training=False), jit_compile=xla
    )
    return lambda: step(images).numpy()


def timm_contestant(variant, batch_size, compiled):
    import torch

    model, images = timm_model(variant, batch_size)
    if compiled:
        model = torch.compile(model)

    def run():
        with torch.inference_mode():
            model(images)

    return run


def onnx_runtime_contestant(variant, batch_size):
    import onnxruntime

    path, images = timm_onnx(variant, batch_size)
    session = onnxruntime.InferenceSession(
        path, providers=["CPUExecutionProvider"]
    )
    return lambda: session.run(None, {"images": images.numpy()})


def openvino_contestant(variant, batch_size):
    import openvino

    path, images = timm_onnx(variant, batch_size)
    # bfloat16 is OpenVINO's default on processors that have it.
    model = openvino.compile_model(
        path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    return lambda: model(images.numpy())


def timm_model(variant, batch_size):
    import timm
    import torch

    size = 384 if variant == "XS24" else SIZE  # published at 384 alone
    model = timm.create_model(f"cait_{variant.lower()}_{size}").eval()
    return model, torch.randn(batch_size, 3, size, size)


def timm_onnx(variant, batch_size):
    import tempfile

    import torch

    model, images = timm_model(variant, batch_size)
    path = f"{tempfile.mkdtemp()}/cait.onnx"
    torch.onnx.export(
        model, (images,), path, input_names=["images"], verbose=False
    )
    return path, images


def matmul_contestant(variant, batch_size):
    """The machine's own rate, as the time of one matrix product."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import tensorflow as tf

    matrix = tf.random.normal((2048, 2048))
    return lambda: tf.matmul(matrix, matrix).numpy()


CONTESTANTS = {
    # name: (what must be installed, how to make a function that runs once)
    "matmul": ("tensorflow", matmul_contestant),
    "ours, graph": (
        "tensorflow",
        partial(keras_cait_contestant, xla=False, dtype="float32"),
    ),
    "ours, XLA": (
        "tensorflow",
        partial(keras_cait_contestant, xla=True, dtype="float32"),
    ),
    "ours, XLA, bfloat16": (
        "tensorflow",
        partial(keras_cait_contestant, xla=True, dtype="mixed_bfloat16"),
    ),
    "timm eager": ("timm", partial(timm_contestant, compiled=False)),
    "timm compiled": ("timm", partial(timm_contestant, compiled=True)),
    "ONNX Runtime": ("onnxruntime", onnx_runtime_contestant),
    "OpenVINO": ("openvino", openvino_contestant),
    "KerasFormers, XLA": ("kerasformers", kerasformers_contestant),
}


def rows(variant, batch_size, results):
    rate = 2 * 2048**3 / results["matmul"]["seconds"]
    timm = results["timm eager"].get("seconds")
    found = {}
    for name, result in results.items():
        if "error" in result:
            found[name] = {"images/s": result["error"]}
        elif name != "matmul":
            speed = batch_size / result["seconds"]
            found[name] = {
                "images/s": speed,
                "timm eager = 1": timm and timm / result["seconds"],
                "% of a matrix product": 2e11 * GMACS[variant] * speed / rate,
                "peak MB": result["peak_bytes"] / 1e6,
            }
    return found


def parser():
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    arguments.add_argument(
        "--variants", nargs="+", default=["XXS24", "S24"], choices=GMACS
    )
    arguments.add_argument(
        "--batch-sizes", nargs="+", type=int, default=[1, 8, 32]
    )
    arguments.add_argument("--rounds", type=int, default=7)
    arguments.add_argument("--output", help="JSON file to write")
    return arguments


def main():
    arguments = parser().parse_args()
    tables = {}
    for variant in arguments.variants:
        for batch_size in arguments.batch_sizes:
            results = take_turns(
                CONTESTANTS, (variant, batch_size), arguments.rounds
            )
            title = f"CaiT-{variant} at {SIZE}, batch {batch_size}"
            tables[title] = rows(variant, batch_size, results)
            show(title, tables[title])
    write(tables, arguments.output)


if __name__ == "__main__":
    main()
