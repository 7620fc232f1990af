"""What a served model costs: requests a second and the time of one request.

    python -m benchmarks.serving --variant S24 --output serving.json

First in process, in turns: the exported SavedModel by its pixels and by encoded
500 x 375 JPEGs, a plain `model.export`, and, where they are installed, timm and
ONNX Runtime on timm's exported model. Then through gRPC at several
concurrencies: against the server that is named by --server, or else against a
server of Python on loopback, which is not TF Serving and costs more than it.
"""

import argparse
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from benchmarks.inference import onnx_runtime_contestant, timm_contestant
from benchmarks.record import show, write
from benchmarks.turns import take_turns

LABELS = [f"class {i}" for i in range(1000)]


def export_models(variant, folder, xla):
    """A served model and a plain export of the same weights."""
    import keras_cait
    from export.serving.model_folder import write_version

    model = getattr(keras_cait, f"CaiT_{variant}")(weights=None)
    write_version(model, LABELS, folder / "cait", xla=xla)
    model.export(folder / "plain", verbose=False)


def pixels_contestant(variant, batch_size, folder):
    import tensorflow as tf

    signature = tf.saved_model.load(f"{folder}/cait/1").signatures["pixels"]
    (spec,) = signature.structured_input_signature[1].values()
    images = tf.zeros((batch_size, *spec.shape[1:]), tf.uint8)
    return lambda: signature(images=images)["logits"].numpy()


def bytes_contestant(variant, batch_size, folder):
    import tensorflow as tf

    loaded = tf.saved_model.load(f"{folder}/cait/1")
    pictures = tf.constant(photos(batch_size))
    signature = loaded.signatures["serving_default"]
    return lambda: signature(image_bytes=pictures)["scores"].numpy()


def plain_contestant(variant, batch_size, folder):
    import tensorflow as tf

    loaded = tf.saved_model.load(f"{folder}/plain")
    (spec,) = (
        loaded.signatures["serving_default"]
        .structured_input_signature[1]
        .values()
    )
    images = tf.zeros((batch_size, *spec.shape[1:]))
    return lambda: loaded.serve(images).numpy()


def timm_in_turn(variant, batch_size, folder):
    return timm_contestant(variant, batch_size, compiled=False)


def onnx_runtime_in_turn(variant, batch_size, folder):
    return onnx_runtime_contestant(variant, batch_size)


def photos(count):
    """Encoded pictures of 500 x 375 pixels, as smooth as photos."""
    from export.serving.warmup import example_picture

    return [example_picture(seed).numpy() for seed in range(count)]


def load(address, concurrency, requests):
    """Sends single pictures from several threads; seconds of each request."""
    from export.serving.client import GrpcClient

    client = GrpcClient(address, "cait", timeout=300.0)
    pictures = photos(8)

    def send(i):
        start = time.perf_counter()
        client.classify([pictures[i % len(pictures)]])
        return time.perf_counter() - start

    start = time.perf_counter()
    with ThreadPoolExecutor(concurrency) as pool:
        seconds = list(pool.map(send, range(requests)))
    elapsed = time.perf_counter() - start
    p50, p95, p99 = np.percentile(seconds, [50, 95, 99])
    return {
        "concurrency": concurrency,
        "requests_per_second": requests / elapsed,
        "p50": p50,
        "p95": p95,
        "p99": p99,
    }


def loopback(folder):
    """A gRPC server around the SavedModel: what answers, not TF Serving."""
    import grpc
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_service_pb2_grpc
    from tensorflow_serving.apis.predict_pb2 import PredictResponse

    signature = tf.saved_model.load(f"{folder}/cait/1").signatures[
        "serving_default"
    ]

    class Service(prediction_service_pb2_grpc.PredictionServiceServicer):
        def Predict(self, request, context):
            pictures = tf.make_ndarray(request.inputs["image_bytes"])
            response = PredictResponse()
            outputs = signature(image_bytes=tf.constant(pictures))
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


def parser():
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    arguments.add_argument("--variant", default="S24")
    arguments.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8])
    arguments.add_argument("--rounds", type=int, default=7)
    arguments.add_argument("--xla", action="store_true")
    arguments.add_argument(
        "--concurrency", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32]
    )
    arguments.add_argument(
        "--requests", type=int, default=64, help="at each concurrency"
    )
    arguments.add_argument(
        "--server", help="host:port of a server of a model named cait"
    )
    arguments.add_argument("--output", type=Path, help="JSON file to write")
    return arguments


def main():
    arguments = parser().parse_args()
    contestants = {
        "ours, pixels": ("tensorflow", pixels_contestant),
        "ours, JPEG bytes": ("tensorflow", bytes_contestant),
        "model.export": ("tensorflow", plain_contestant),
        "timm eager": ("timm", timm_in_turn),
        "ONNX Runtime": ("onnxruntime", onnx_runtime_in_turn),
    }
    tables = {}
    with tempfile.TemporaryDirectory() as folder:
        export_models(arguments.variant, Path(folder), arguments.xla)
        for batch_size in arguments.batch_sizes:
            results = take_turns(
                contestants,
                (arguments.variant, batch_size, folder),
                arguments.rounds,
            )
            title = f"CaiT-{arguments.variant}, batch {batch_size}"
            tables[title] = rows(batch_size, results)
            show(title, tables[title])
        server, address = None, arguments.server
        if address is None:
            server, address = loopback(folder)
        ask = partial(load, address, requests=arguments.requests)
        load(address, 1, requests=4)  # what starts once is not counted
        title = "Answers of a server to single pictures"
        tables[title] = {
            f"{concurrency} at a time": of_load(ask(concurrency))
            for concurrency in arguments.concurrency
        }
        show(title, tables[title])
        if server:
            server.stop(0)
    write(tables, arguments.output)


def rows(batch_size, results):
    found = {}
    timm = results["timm eager"].get("seconds")
    for name, result in results.items():
        if "error" in result:
            found[name] = {"images/s": result["error"]}
        else:
            found[name] = {
                "images/s": batch_size / result["seconds"],
                "timm eager = 1": timm and timm / result["seconds"],
            }
    return found


def of_load(row):
    times = {f"{key}, ms": 1e3 * row[key] for key in ("p50", "p95", "p99")}
    return {"requests/s": row["requests_per_second"]} | times


if __name__ == "__main__":
    main()
