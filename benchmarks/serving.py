"""Serving: throughput and latency of a busy server.

Every request has one thread, and as many are in flight as there are cores.
First in process: the SavedModel, exported with `--parts 1`, from pixels and
from encoded 500 x 375 JPEGs, a plain `model.export`, timm, and ONNX Runtime and
OpenVINO with timm's exported model. Then through gRPC at several concurrencies,
from the server named by --server or else from a Python server on loopback,
which is slower than TF Serving.
"""

import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from benchmarks.command import Count, Output, Rounds, benchmark_app, run
from benchmarks.inference import (
    OPENVINO_FLOAT32,
    Case,
    Run,
    export_models,
    onnx_images,
    onnx_runtime_runner,
    saved_model_runner,
    served_model,
    timm_onnx,
    timm_runner,
)
from benchmarks.interleave import Runner, compared, interleave
from benchmarks.results import show, write
from training.recipe import Variant

CORES = os.cpu_count() or 1
REQUESTS = 4 * CORES  # of a round
# How TensorFlow and PyTorch are told; the others have options.
ONE_THREAD = {"TF_NUM_INTRAOP_THREADS": "1", "OMP_NUM_THREADS": "1"}


def in_flight(set_up: Callable[..., Run], case: Case, **settings: Any) -> Run:
    """Requests of a thread for each core."""
    run = set_up(case, **settings)
    pool = ThreadPoolExecutor(CORES)

    def requests() -> None:
        for request in [pool.submit(run) for _ in range(REQUESTS)]:
            request.result()

    return requests


def jpeg_runner(case: Case) -> Run:
    loaded = served_model(f"{case.folder}/whole/1")
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


def openvino_queue(case: Case) -> Run:
    """OpenVINO's own way to have a request for each core."""
    import openvino

    streams = {"NUM_STREAMS": CORES, "INFERENCE_NUM_THREADS": CORES}
    model = openvino.compile_model(
        timm_onnx(case), "CPU", OPENVINO_FLOAT32 | streams
    )
    queue = openvino.AsyncInferQueue(model, CORES)
    images = onnx_images(case)

    def requests() -> None:
        for _ in range(REQUESTS):
            queue.start_async(images)
        queue.wait_all()

    return requests


def tensorflow_runner(set_up: Callable[..., Run], **settings: Any) -> Runner:
    return "tensorflow", partial(in_flight, set_up, **settings)


RUNNERS: dict[str, Runner] = {
    "keras-cait, pixels": tensorflow_runner(saved_model_runner, name="whole"),
    "keras-cait, pixels, packed weights": tensorflow_runner(
        saved_model_runner, name="whole", packed=True
    ),
    "keras-cait, pixels, XLA": tensorflow_runner(
        saved_model_runner, name="xla"
    ),
    "keras-cait, JPEG bytes": tensorflow_runner(jpeg_runner),
    "model.export": tensorflow_runner(plain_export_runner),
    "timm eager": ("timm", partial(in_flight, timm_runner, compiled=False)),
    "ONNX Runtime": (
        "onnxruntime",
        partial(in_flight, onnx_runtime_runner, threads=1),
    ),
    "OpenVINO": ("openvino", openvino_queue),
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

    loaded = tf.saved_model.load(f"{folder}/whole/1")
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


app = benchmark_app("serving", __doc__)


@app.default
def main(
    *,
    variants: tuple[Variant, ...] = ("XXS24", "S24"),
    batch_sizes: tuple[Count, ...] = (1, 8),
    rounds: Rounds = 7,
    concurrency: tuple[Count, ...] = (1, 2, 4, 8, 16, 32),
    requests: Count = 64,
    server: str | None = None,
    output: Output = None,
) -> None:
    """Times the SavedModel in process and behind a server.

    Args:
        variants: Models to export.
        batch_sizes: Images per request, in process.
        concurrency: Requests in flight, through a server.
        requests: Requests at each concurrency.
        server: Address (host:port) of a server with a model named cait. It
            alone is timed.
    """
    os.environ.update(ONE_THREAD)
    # Not above: a baseline's process would import Keras and count its memory.
    from export.options import SERVED_SIGNATURES
    from keras_cait.models import VARIANTS

    tables = {}

    def time_server(title: str, address: str) -> None:
        load(address, 1, requests=4)  # warm-up
        tables[title] = {
            f"{count} in flight": load(address, count, requests)
            for count in concurrency
        }
        show(title, tables[title])

    if server:
        time_server("Requests of one image each", server)
    for variant in () if server else variants:
        with tempfile.TemporaryDirectory() as folder:
            size = VARIANTS[variant].image_size
            model = export_models(variant, size, folder, SERVED_SIGNATURES)
            model.export(f"{folder}/plain", verbose=False)
            for batch_size in batch_sizes:
                case = Case(variant, size, batch_size, folder)
                timings = interleave(RUNNERS, (case,), rounds)
                title = f"CaiT-{variant}, batch {batch_size}"
                images = REQUESTS * batch_size
                tables[title] = compared(
                    timings, images, "timm eager", "OpenVINO"
                )
                show(title, tables[title])
            loopback, address = loopback_server(folder)
            time_server(f"CaiT-{variant}, requests of one image", address)
            loopback.stop(0)
    write(tables, output, rounds)


if __name__ == "__main__":
    run(app)
