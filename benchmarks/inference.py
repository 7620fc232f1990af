"""Inference: images per second of keras-cait and its alternatives.

*graph* and *XLA* are the Keras model in a `tf.function`; *SavedModel* is what
`python -m export saved-model` writes, called with uint8 pixels, with the
settings of the server's files that it writes. The machine's own rate is that of
a float32 product of two 2048 x 2048 matrices.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.command import Count, Output, Rounds, benchmark_app, run
from benchmarks.interleave import Runner, Timing, compared, interleave
from benchmarks.results import Rows, show, write
from training.recipe import Variant

LABELS = [f"class {i}" for i in range(1000)]
# OpenVINO computes in bfloat16 by default where the CPU supports it.
OPENVINO_FLOAT32 = {"INFERENCE_PRECISION_HINT": "f32"}

Run = Callable[[], object]
# A function of images as the engine takes them to the scores of classes.
Engine = Callable[[Any], Any]


class Case(NamedTuple):
    """What is timed.

    Attributes:
        variant: key of `VARIANTS`.
        image_size: height and width in pixels.
        batch_size: images per run.
        folder: where exported models are.
    """

    variant: str
    image_size: int
    batch_size: int
    folder: str


def keras_cait_runner(
    case: Case, xla: bool = False, dtype: str = "float32"
) -> Run:
    import keras

    import keras_cait

    keras.config.set_dtype_policy(dtype)
    model = getattr(keras_cait, f"CaiT_{case.variant}")(
        weights=None,
        include_preprocessing=False,
        classifier_activation=None,
        input_shape=(case.image_size, case.image_size, 3),
    )
    return tensorflow_runner(model, case, xla)


def zeromodels_runner(case: Case) -> Run:
    from zeromodels.models.cait import CaiTImageClassify

    from keras_cait.models import VARIANTS

    config = VARIANTS[case.variant]
    model = CaiTImageClassify(
        embed_dim=config.embed_dim,
        depth=config.depth,
        num_heads=config.num_heads,
        image_size=case.image_size,
    )
    return tensorflow_runner(model, case, xla=True)


def tensorflow_runner(model: Any, case: Case, xla: bool) -> Run:
    import tensorflow as tf

    size = case.image_size
    images = tf.random.normal((case.batch_size, size, size, 3))
    step = tf.function(
        lambda images: model(images, training=False), jit_compile=xla
    )
    return lambda: step(images).numpy()


def served_model(
    path: str, onednn: bool = True, packed: bool = False, threads: int = 1
) -> Any:
    """Loads a SavedModel with the settings of a server.

    The threads are those of an operation; 0 is one for each core.
    """
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = str(int(onednn))
    os.environ["TF_ONEDNN_ASSUME_FROZEN_WEIGHTS"] = str(int(packed))
    import tensorflow as tf

    if threads:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
    return tf.saved_model.load(path)


def saved_model_runner(case: Case, name: str, **settings: Any) -> Run:
    """The signature `pixels` of a served model in the folder."""
    loaded = served_model(f"{case.folder}/{name}/1", **settings)
    import tensorflow as tf

    size = case.image_size
    images = tf.zeros((case.batch_size, size, size, 3), tf.uint8)
    signature = loaded.signatures["pixels"]
    return lambda: signature(images=images)["logits"].numpy()


def timm_runner(case: Case, compiled: bool) -> Run:
    import torch

    model = timm_model(case).eval()
    if compiled:
        model = torch.compile(model)
    images = torch.randn(case.batch_size, 3, case.image_size, case.image_size)

    def forward() -> None:
        with torch.inference_mode():
            model(images)

    return forward


def onnx_runtime_runner(case: Case, threads: int = 0) -> Run:
    engine = onnx_runtime_engine(timm_onnx(case), threads)
    return partial(engine, onnx_images(case))


def openvino_runner(case: Case) -> Run:
    return partial(openvino_engine(timm_onnx(case)), onnx_images(case))


def onnx_runtime_engine(path: str, threads: int = 0) -> Engine:
    """ONNX Runtime with some threads, or with one for each core."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        path, options, providers=["CPUExecutionProvider"]
    )
    return lambda images: session.run(None, {"images": images})[0]


def openvino_engine(path: str) -> Engine:
    import openvino

    model = openvino.compile_model(path, "CPU", OPENVINO_FLOAT32)
    return lambda images: model(images)[0]


def timm_model(case: Case) -> Any:
    import timm

    return timm.create_model(f"cait_{case.variant.lower()}_{case.image_size}")


def timm_onnx(case: Case) -> str:
    """Path of timm's model in ONNX, which is written if it is missing.

    A process of its own writes it: PyTorch's memory would count.
    """
    path = f"{case.folder}/batch-{case.batch_size}.onnx"
    if not Path(path).exists():
        program = (
            "from benchmarks.inference import Case, export_onnx, timm_model\n"
            f"export_onnx(timm_model({case}), {case}, {path!r})"
        )
        command = [sys.executable, "-c", program]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return path


def export_onnx(model: Any, case: Case, path: str) -> None:
    """Writes a model of PyTorch in ONNX, for one batch size."""
    import torch

    torch.onnx.export(
        model.eval(),
        (torch.zeros(case.batch_size, 3, case.image_size, case.image_size),),
        path,
        input_names=["images"],
        external_data=False,
        verbose=False,
    )


def onnx_images(case: Case) -> Any:
    import numpy as np

    shape = (case.batch_size, 3, case.image_size, case.image_size)
    return np.random.default_rng(0).standard_normal(shape, "float32")


def matrix_product_runner(case: Case) -> Run:
    """Measures the machine's own rate."""
    import tensorflow as tf

    matrix = tf.random.normal((2048, 2048))
    return lambda: tf.matmul(matrix, matrix).numpy()


RUNNERS: dict[str, Runner] = {
    "matrix product": ("tensorflow", matrix_product_runner),
    "keras-cait, SavedModel": (
        "tensorflow",
        partial(saved_model_runner, name="graph"),
    ),
    "keras-cait, SavedModel, packed weights": (
        "tensorflow",
        partial(saved_model_runner, name="graph", packed=True),
    ),
    "keras-cait, SavedModel, without oneDNN": (
        "tensorflow",
        partial(saved_model_runner, name="graph", onednn=False),
    ),
    "keras-cait, SavedModel, default threads": (
        "tensorflow",
        partial(saved_model_runner, name="graph", threads=0),
    ),
    "keras-cait, SavedModel of one part, default threads": (
        "tensorflow",
        partial(saved_model_runner, name="whole", threads=0),
    ),
    "keras-cait, SavedModel, XLA": (
        "tensorflow",
        partial(saved_model_runner, name="xla", threads=0),
    ),
    "keras-cait, graph": ("tensorflow", keras_cait_runner),
    "keras-cait, XLA": ("tensorflow", partial(keras_cait_runner, xla=True)),
    "keras-cait, XLA, bfloat16": (
        "tensorflow",
        partial(keras_cait_runner, xla=True, dtype="mixed_bfloat16"),
    ),
    "timm eager": ("timm", partial(timm_runner, compiled=False)),
    "timm compiled": ("timm", partial(timm_runner, compiled=True)),
    "ONNX Runtime": ("onnxruntime", onnx_runtime_runner),
    "OpenVINO": ("openvino", openvino_runner),
    "ZeroModels, XLA": ("zeromodels", zeromodels_runner),
}


def export_models(
    variant: str,
    image_size: int,
    folder: str,
    signatures: Sequence[Any] = ("pixels",),
) -> Any:
    """Exports served models, and returns the model they were made from.

    They are `graph`, `whole` (of one part) and `xla`.
    """
    import keras_cait
    from export.serving.model_folder import write_version

    model = getattr(keras_cait, f"CaiT_{variant}")(
        weights=None, input_shape=(image_size, image_size, 3)
    )
    for name in ("graph", "whole", "xla"):
        write_version(
            model,
            LABELS,
            Path(folder, name),
            xla=name == "xla",
            signatures=signatures,
            parts=1 if name == "whole" else None,
        )
    return model


def rows(case: Case, timings: dict[str, Timing | str]) -> Rows:
    """Images per second, relative to timm and to the machine's own rate."""
    # Not above: a baseline's process would import Keras and count its memory.
    from benchmarks.cost import multiply_adds

    flops = 2 * multiply_adds(case.variant, case.image_size) * case.batch_size
    found = compared(timings, case.batch_size, "timm eager")
    del found["matrix product"]
    product = timings["matrix product"]
    for name, row in found.items():
        timing = timings[name]
        if isinstance(timing, Timing) and isinstance(product, Timing):
            rate = 2 * 2048**3 / product.median
            row["% of a matrix product"] = 100 * flops / timing.median / rate
            row["peak MB"] = timing.peak_bytes / 1e6
    return found


app = benchmark_app("inference", __doc__)


@app.default
def main(
    *,
    variants: tuple[Variant, ...] = ("XXS24", "S24"),
    image_sizes: tuple[Count, ...] = (224,),
    batch_sizes: tuple[Count, ...] = (1, 8, 32),
    rounds: Rounds = 7,
    output: Output = None,
) -> None:
    """Times CaiT in keras-cait, timm, ONNX Runtime, OpenVINO and ZeroModels.

    Args:
        variants: Models to time.
        image_sizes: Height and width in pixels; timm has models of 224 and 384.
        batch_sizes: Images per run.
    """
    tables = {}
    for variant in variants:
        for image_size in image_sizes:
            with tempfile.TemporaryDirectory() as folder:
                export_models(variant, image_size, folder)
                for batch_size in batch_sizes:
                    case = Case(variant, image_size, batch_size, folder)
                    timings = interleave(RUNNERS, (case,), rounds)
                    title = (
                        f"CaiT-{variant} at {image_size}, batch {batch_size}"
                    )
                    tables[title] = rows(case, timings)
                    show(title, tables[title])
    write(tables, output, rounds)


if __name__ == "__main__":
    run(app)
