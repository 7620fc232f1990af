"""Int8 on a CPU: images per second, and the accuracy of a trained model.

LiteRT runs the files of `python -m export litert`; ONNX Runtime and OpenVINO
run timm's exported model with the same weights, which their own tools quantize
(NNCF for OpenVINO), calibrated on the same images. LiteRT divides a batch among
the cores, and so does OpenVINO with streams.
"""

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.command import Count, Output, Rounds, benchmark_app, run
from benchmarks.inference import (
    OPENVINO_FLOAT32,
    Case,
    Engine,
    Run,
    export_onnx,
    onnx_runtime_engine,
    openvino_engine,
    timm_model,
)
from benchmarks.interleave import Runner, compared, interleave
from benchmarks.results import Rows, show, write
from training.recipe import Variant

DIGITS = "digits"  # instead of a variant: the model of explanations.py
CALIBRATED = 100  # digits; of a model that has learned nothing, fewer will do
VALIDATED = 1000
CORES = os.cpu_count() or 1
WEIGHTS = "model.safetensors"
SCHEMES = ("float32", "dynamic-int8", "static-int8")


def images_of(case: Case, split: str, count: int) -> tuple[Any, Any]:
    """Uint8 images `(count, height, width, 3)` and their classes."""
    import numpy as np

    if case.variant == DIGITS:
        from benchmarks.explanations import canvases

        moved = canvases(split, digits=1, count=count, seed=0)
        return moved.images, moved.labels[:, 0]
    shape = (count, case.image_size, case.image_size, 3)
    noise = np.random.default_rng(0).integers(0, 256, shape, "uint8")
    return noise, np.zeros(count, int)


def normalized(images: Any) -> Any:
    """Images as timm's models take them: `(count, 3, height, width)`."""
    from keras_cait.preprocessing import preprocess_input

    return preprocess_input(images).transpose(0, 3, 1, 2)


def calibration(case: Case) -> Any:
    count = CALIBRATED if case.variant == DIGITS else 8
    return images_of(case, "train", count)[0]


def write_litert(case: Case) -> None:
    """Writes a .tflite file in each scheme, and the weights for timm."""
    import keras_cait
    from benchmarks import explanations
    from export.inference_graph import InferenceModel
    from export.litert import convert
    from export.quantization import quantize

    if case.variant == DIGITS:
        model = explanations.model()
        keras_cait.load_weights(model, explanations.WEIGHTS)
    else:
        model = getattr(keras_cait, f"CaiT_{case.variant}")(weights=None)
    keras_cait.save_weights(model, f"{case.folder}/{WEIGHTS}")
    float32 = convert(InferenceModel(model))
    images = list(calibration(case).astype("float32"))
    for scheme in SCHEMES:
        path = Path(case.folder, f"{scheme}.tflite")
        path.write_bytes(quantize(float32, scheme, images))


def write_onnx(case: Case) -> None:
    """Exports timm's model with the same weights."""
    import timm

    if case.variant == DIGITS:
        model = timm.models.cait.Cait(
            *(84, 14),
            embed_dim=32,
            depth=2,
            num_heads=4,
            num_classes=10,
        )
    else:
        model = timm_model(case)
    timm.models.load_checkpoint(model, f"{case.folder}/{WEIGHTS}")
    export_onnx(model, case, f"{case.folder}/float32.onnx")


def batches(case: Case) -> list[Any]:
    """Calibration images in batches of the exported graph's size."""
    images, size = normalized(calibration(case)), case.batch_size
    return [
        images[start : start + size]
        for start in range(0, len(images) - size + 1, size)
    ]


def write_onnx_runtime(case: Case) -> None:
    """Quantizes the dense layers and the patches with ONNX Runtime."""
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(batches(case))

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch}

    folder = Path(case.folder)
    prepared = folder / "prepared.onnx"
    quant_pre_process(
        folder / "float32.onnx", prepared, skip_symbolic_shape=True
    )
    layers = ["Conv", "Gemm", "MatMul"]
    constant = {"MatMulConstBOnly": True}
    quantization.quantize_dynamic(
        prepared,
        folder / "dynamic-int8.onnx",
        op_types_to_quantize=layers[1:],
        per_channel=True,
        weight_type=quantization.QuantType.QInt8,
        extra_options=constant,
    )
    quantization.quantize_static(
        prepared,
        folder / "static-int8.onnx",
        Reader(),
        op_types_to_quantize=layers,
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
        extra_options=constant,
    )


def write_openvino(case: Case) -> None:
    """Quantizes with NNCF, as its documentation says for transformers."""
    import nncf
    import openvino

    found = batches(case)
    model = nncf.quantize(
        openvino.convert_model(f"{case.folder}/float32.onnx"),
        nncf.Dataset(found),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(found),
    )
    path = f"{case.folder}/int8.xml"
    openvino.save_model(model, path, compress_to_fp16=False)


def litert_engine(path: str) -> Engine:
    from keras_cait.litert import LiteRTModel

    return LiteRTModel(path)


def openvino_streams_engine(path: str) -> Engine:
    """OpenVINO's way to a high throughput: each core runs a part of a batch."""
    import numpy as np
    import openvino

    streams = {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": CORES}
    model = openvino.compile_model(path, "CPU", OPENVINO_FLOAT32 | streams)
    size = model.input().shape[0]
    queue = openvino.AsyncInferQueue(model, CORES)
    outputs: dict[int, Any] = {}

    def keep(request: Any, start: int) -> None:
        outputs[start] = request.get_output_tensor().data.copy()

    def run(images: Any) -> Any:
        starts = range(0, len(images), size)
        for start in starts:
            queue.start_async([images[start : start + size]], start)
        queue.wait_all()
        return np.concatenate([outputs[start] for start in starts])

    queue.set_callback(keep)
    return run


class Contestant(NamedTuple):
    """The package an engine needs, how it loads a file, and which."""

    package: str
    load: Callable[[str], Engine]
    file: str

    def engine(self, case: Case) -> Engine:
        return self.load(f"{case.folder}/{self.file}")


ENGINES = {
    **{
        f"LiteRT, {scheme}": Contestant(
            "ai_edge_litert", litert_engine, f"{scheme}.tflite"
        )
        for scheme in SCHEMES
    },
    **{
        f"ONNX Runtime, {scheme}": Contestant(
            "onnxruntime", onnx_runtime_engine, f"{scheme}.onnx"
        )
        for scheme in SCHEMES
    },
    "OpenVINO, float32": Contestant(
        "openvino", openvino_engine, "float32.onnx"
    ),
    "OpenVINO, int8": Contestant("openvino", openvino_engine, "int8.xml"),
    "OpenVINO, int8, streams": Contestant(
        "openvino", openvino_streams_engine, "part/int8.xml"
    ),
}


def names(case: Case) -> list[str]:
    """The engines that take part: one image is not divided."""
    is_one = case.batch_size == 1
    return [name for name in ENGINES if not (is_one and "streams" in name)]


def taken(name: str, images: Any) -> Any:
    """Uint8 images as an engine takes them."""
    if name.startswith("LiteRT"):
        return images.astype("float32")
    return normalized(images)


def runner(case: Case, name: str) -> Run:
    images = taken(name, images_of(case, "validation", case.batch_size)[0])
    return partial(ENGINES[name].engine(case), images)


def accuracy(case: Case, name: str) -> list[int]:
    """The best class of each validation image."""
    engine = ENGINES[name].engine(case)
    images = taken(name, images_of(case, "validation", VALIDATED)[0])
    size = case.batch_size
    return [
        int(best)
        for start in range(0, VALIDATED - size + 1, size)
        for best in engine(images[start : start + size]).argmax(-1)
    ]


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function in a process of its own.

    TensorFlow and PyTorch do not live together in one.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def write_files(case: Case) -> None:
    """Writes the files of all engines."""
    for write_file in (
        write_litert,
        write_onnx,
        write_onnx_runtime,
        write_openvino,
    ):
        apart(write_file, case)
    if case.batch_size == 1:
        return
    part = case._replace(
        batch_size=max(1, case.batch_size // CORES),
        folder=f"{case.folder}/part",
    )
    os.mkdir(part.folder)
    os.link(f"{case.folder}/{WEIGHTS}", f"{part.folder}/{WEIGHTS}")
    for write_file in (write_onnx, write_openvino):
        apart(write_file, part)


def accuracy_rows(classes: Mapping[str, list[int]], truth: Any) -> Rows:
    """Accuracy, and agreement with the model in float32, in percent."""
    import numpy as np

    float32 = np.array(classes["LiteRT, float32"])
    return {
        name: {
            "top-1, %": 100 * float((np.array(best) == truth).mean()),
            "agreement, %": 100 * float((np.array(best) == float32).mean()),
        }
        for name, best in classes.items()
    }


app = benchmark_app("int8", __doc__)


@app.default
def main(
    *,
    variants: tuple[Variant, ...] = ("XXS24", "S24"),
    batch_sizes: tuple[Count, ...] = (1, 8),
    rounds: Rounds = 7,
    output: Output = None,
) -> None:
    """Times int8 and float32 in three engines, with a thread for each core.

    Args:
        variants: Models to time, at 224 pixels, with random weights.
        batch_sizes: Images per run.
    """
    tables: dict[str, Rows] = {}
    with tempfile.TemporaryDirectory() as folder:
        case = Case(DIGITS, 84, 1, folder)
        write_files(case)
        classes = {name: apart(accuracy, case, name) for name in names(case)}
        _, truth = images_of(case, "validation", VALIDATED)
        title = f"A model that has learned, on {VALIDATED:,} digits"
        tables[title] = accuracy_rows(classes, truth)
        show(title, tables[title])
    for variant in variants:
        for batch_size in batch_sizes:
            with tempfile.TemporaryDirectory() as folder:
                case = Case(variant, 224, batch_size, folder)
                write_files(case)
                runners: dict[str, Runner] = {
                    name: (ENGINES[name].package, partial(runner, name=name))
                    for name in names(case)
                }
                timings = interleave(runners, (case,), rounds)
            title = f"CaiT-{variant} at 224, batch {batch_size}"
            tables[title] = compared(timings, batch_size, "OpenVINO, int8")
            show(title, tables[title])
    write(tables, output, rounds)


if __name__ == "__main__":
    run(app)
