"""Serving: throughput and latency of a served model.

First in process: the exported SavedModel from pixels and from encoded 500 x 375
JPEGs, a plain `model.export`, timm, and ONNX Runtime with timm's exported
model. Then through gRPC at several concurrencies, from the server named by
--server or else from a Python server on loopback, which is slower than
TF Serving.
"""

import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from benchmarks.inference import (
    LABELS,
    Case,
    Run,
    onnx_runtime_runner,
    saved_model_runner,
    served_model,
    timm_runner,
)
from benchmarks.interleave import Runner, Timing, interleave, relative
from benchmarks.results import Count, Output, Rounds, Rows, show, write
from training.recipes import Variant


def export_models(variant: str, folder: Path, xla: bool) -> None:
    """Exports a served model, and the same weights with `model.export`."""
    import keras_cait
    from export.serving.model_folder import write_version

    model = getattr(keras_cait, f"CaiT_{variant}")(weights=None)
    write_version(model, LABELS, folder / "cait", xla=xla)
    model.export(folder / "plain", verbose=False)


def jpeg_runner(case: Case) -> Run:
    loaded = served_model(f"{case.folder}/cait/1")
    import tensorflow as tf

    images = tf.constant(jpegs(case.batch_size))
    signature = loaded.signatures["serving_default"]
    return lambda: signature(image_bytes=images)["scores"].numpy()


def plain_export_runner(case: Case) -> Run:
    import tensorflow as tf

    loaded = tf.saved_model.load(f"{case.folder}/plain")
    signature = loaded.signatures["serving_default"]
    (spec,) = signature.structured_input_signature[1].values()
    images = tf.zeros((case.batch_size, *spec.shape[1:]))
    return lambda: loaded.serve(images).numpy()


RUNNERS: dict[str, Runner] = {
    "keras-cait, pixels": (
        "tensorflow",
        partial(saved_model_runner, name="cait"),
    ),
    "keras-cait, JPEG bytes": ("tensorflow", jpeg_runner),
    "model.export": ("tensorflow", plain_export_runner),
    "timm eager": ("timm", partial(timm_runner, compiled=False)),
    "ONNX Runtime": ("onnxruntime", onnx_runtime_runner),
}


def jpegs(count: int) -> list[bytes]:
    """Encoded 500 x 375 images, as smooth as photos."""
    from export.serving.warmup import example_image

    return [example_image(seed) for seed in range(count)]


def load(address: str, concurrency: int, requests: int) -> dict[str, float]:
    """Sends requests of one image each from several threads."""
    import numpy as np

    from export.serving.client import GrpcClient

    client = GrpcClient(address, "cait", timeout=300.0)
    images = jpegs(8)

    def send(i: int) -> float:
        start = time.perf_counter()
        client.classify([images[i % len(images)]])
        return time.perf_counter() - start

    start = time.perf_counter()
    with ThreadPoolExecutor(concurrency) as pool:
        seconds = list(pool.map(send, range(requests)))
    elapsed = time.perf_counter() - start
    p50, p95, p99 = (float(x) for x in np.percentile(seconds, [50, 95, 99]))
    return {
        "requests/s": requests / elapsed,
        "p50, ms": 1e3 * p50,
        "p95, ms": 1e3 * p95,
        "p99, ms": 1e3 * p99,
    }


def loopback_server(folder: str) -> tuple[Any, str]:
    """Serves the SavedModel by gRPC; returns the server and its address."""
    import grpc
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_service_pb2_grpc
    from tensorflow_serving.apis.predict_pb2 import PredictResponse

    loaded = tf.saved_model.load(f"{folder}/cait/1")
    signature = loaded.signatures["serving_default"]

    class Service(prediction_service_pb2_grpc.PredictionServiceServicer):
        def Predict(self, request: Any, context: Any) -> PredictResponse:
            images = tf.make_ndarray(request.inputs["image_bytes"])
            response = PredictResponse()
            outputs = signature(image_bytes=tf.constant(images))
            for name, value in outputs.items():
                response.outputs[name].CopyFrom(tf.make_tensor_proto(value))
            return response

    server = grpc.server(ThreadPoolExecutor(32))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
        Service(), server
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, f"127.0.0.1:{port}"


def rows(batch_size: int, timings: dict[str, Timing | str]) -> Rows:
    """Images per second, relative to timm."""
    found = {}
    for name, timing in timings.items():
        if isinstance(timing, str):
            found[name] = {"images/s": timing}
            continue
        found[name] = {
            **timing.columns("images/s", lambda s: batch_size / s),
            "timm eager = 1": relative(timings["timm eager"], timing),
        }
    return found


app = App(
    name="python -m benchmarks.serving",
    help=__doc__,
    default_parameter=Parameter(consume_multiple=True),
)


@app.default
def main(
    *,
    variant: Variant = "S24",
    batch_sizes: tuple[Count, ...] = (1, 8),
    rounds: Rounds = 7,
    xla: Annotated[bool, Parameter(negative=())] = False,
    concurrency: tuple[Count, ...] = (1, 2, 4, 8, 16, 32),
    requests: Count = 64,
    server: str | None = None,
    output: Output = None,
) -> None:
    """Times the SavedModel in process and behind a server.

    Args:
        variant: Model to export, such as XXS24 or S24.
        batch_sizes: Images per run, in process.
        xla: Export with --xla.
        concurrency: Requests in flight.
        requests: Requests at each concurrency.
        server: Address (host:port) of a server with a model named cait.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # Not above: a baseline's process would import Keras and count its memory.
    from keras_cait.models import VARIANTS

    size = VARIANTS[variant].image_size
    tables = {}
    with tempfile.TemporaryDirectory() as folder:
        export_models(variant, Path(folder), xla)
        for batch_size in batch_sizes:
            case = Case(variant, size, batch_size, folder)
            timings = interleave(RUNNERS, (case,), rounds)
            title = f"CaiT-{variant}, batch {batch_size}"
            tables[title] = rows(batch_size, timings)
            show(title, tables[title])
        loopback = None
        if server is None:
            loopback, server = loopback_server(folder)
        send = partial(load, server, requests=requests)
        load(server, 1, requests=4)  # warm-up
        title = "Requests of one image each"
        tables[title] = {
            f"{count} in flight": send(count) for count in concurrency
        }
        show(title, tables[title])
        if loopback:
            loopback.stop(0)
    write(tables, output, rounds)


if __name__ == "__main__":
    from keras_cait.command_line import run

    run(app)
