"""Stand-ins for TensorFlow Serving on loopback, with faults on request.

`Server` runs a real SavedModel behind the official gRPC services Predict and
GetModelStatus and REST's `:predict`, with TensorFlow's own batching of requests
if asked. `RawServer` sends any bytes.
"""

import base64
import gzip
import json
import re
import socket
import ssl
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import grpc
import tensorflow as tf
from tensorflow_serving.apis import (
    model_service_pb2_grpc,
    prediction_service_pb2_grpc,
)
from tensorflow_serving.apis.get_model_status_pb2 import (
    GetModelStatusResponse,
    ModelVersionStatus,
)
from tensorflow_serving.apis.predict_pb2 import PredictResponse

HTTP = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.UNAVAILABLE: 503,
}


# What TF Serving says when an assertion of the graph fails.
MESSAGE = "assertion failed: [Refused image_bytes at] [1] [A reason.]"
NODES = """
\t [[{{function_node __inference_decode_27}}{{node Assert/AssertGuard/Assert}}]]
\t [[StatefulPartitionedCall/StatefulPartitionedCall/Exp/_2187]]
"""
STRICT = (
    f"2 root error(s) found.\n  (0) INVALID_ARGUMENT: {MESSAGE}{NODES}"
    f"  (1) INVALID_ARGUMENT: {MESSAGE}{NODES}0 successful operations.\n"
    "0 derived errors ignored."
)


class Failure(Exception):
    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


class Server:
    """Serves the versions of a model's folder inside a `with` block.

    `requests` counts requests. The next `unavailable` requests are refused with
    UNAVAILABLE, the next `cut` REST connections are closed without a response,
    and every response is `delay` seconds late. If `strict`, one refused image
    fails its request, as in an export with --strict. If `response` is set, gRPC
    returns it and runs no model. With `batch_sizes`, requests that arrive
    together run as one, as TF Serving's do; `batches` are their sizes. Images
    of more than `max_message` bytes are refused, as by a proxy. With
    `certificate`, a folder of `make_certificate`, further ports speak TLS.
    `headers` are those of the last request.
    """

    def __init__(
        self,
        folder,
        labels,
        max_message=4 << 20,
        batch_sizes=(),
        certificate=None,
    ):
        self.name = folder.name
        self.labels = labels
        self.versions = {
            int(path.parent.name): tf.saved_model.load(str(path.parent))
            for path in folder.glob("*/saved_model.pb")
        }
        self.certificate = certificate
        self.headers = {}
        self.batches = []
        self.signatures = {
            number: {
                name: batched(signature, batch_sizes, self.batches)
                if batch_sizes
                else signature
                for name, signature in version.signatures.items()
            }
            for number, version in self.versions.items()
        }
        self.max_message = max_message
        self.requests = self.unavailable = self.cut = 0
        self.delay = 0.0
        self.response = None
        self.strict = False

    def __enter__(self):
        limit = ("grpc.max_receive_message_length", self.max_message)
        self.grpc = grpc.server(ThreadPoolExecutor(32), options=[limit])
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
            PredictionService(self), self.grpc
        )
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(
            ModelService(self), self.grpc
        )
        port = self.grpc.add_insecure_port("127.0.0.1:0")
        self.grpc_address = f"127.0.0.1:{port}"
        handler = type("Handler", (RestHandler,), {"server_of_models": self})
        self.rest = [RestServer(("127.0.0.1", 0), handler)]
        self.rest_address = f"127.0.0.1:{self.rest[0].server_port}"
        if self.certificate:
            files = [self.certificate / name for name in ("key", "certificate")]
            pair = tuple(file.read_bytes() for file in files)
            port = self.grpc.add_secure_port(
                "127.0.0.1:0", grpc.ssl_server_credentials([pair])
            )
            self.grpc_tls_address = f"127.0.0.1:{port}"
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(*reversed(files))
            secure = RestServer(("127.0.0.1", 0), handler)
            secure.socket = context.wrap_socket(
                secure.socket, server_side=True, do_handshake_on_connect=False
            )
            self.rest.append(secure)
            self.rest_tls_address = f"127.0.0.1:{secure.server_port}"
        self.grpc.start()
        for server in self.rest:
            threading.Thread(target=server.serve_forever, args=[0.02]).start()
        return self

    def __exit__(self, *_):
        self.grpc.stop(0)
        for server in self.rest:
            server.shutdown()
            server.server_close()

    def find(self, name, version=None, label=None):
        """The number of the requested version."""
        if name != self.name:
            raise Failure(
                grpc.StatusCode.NOT_FOUND, f"Servable not found: {name}"
            )
        if label is not None and label not in self.labels:
            raise Failure(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"Unrecognized servable version label: {label}",
            )
        number = self.labels[label] if label else version or max(self.versions)
        if number not in self.versions:
            raise Failure(
                grpc.StatusCode.NOT_FOUND,
                f"Servable not found: {name} version {number}",
            )
        return number

    def predict(self, number, signature, inputs):
        self.requests += 1
        time.sleep(self.delay)
        if self.unavailable:
            self.unavailable -= 1
            raise Failure(grpc.StatusCode.UNAVAILABLE, "busy")
        try:
            outputs = self.signatures[number][signature](**inputs)
            if self.strict and any(outputs["error"].numpy()):
                raise Failure(grpc.StatusCode.INVALID_ARGUMENT, STRICT)
            return outputs
        except tf.errors.InvalidArgumentError as error:
            code = grpc.StatusCode.INVALID_ARGUMENT
            raise Failure(code, error.message) from None


def make_certificate(folder):
    """Writes a key and a self-signed certificate of 127.0.0.1."""
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test"
    command += f" -addext subjectAltName=IP:127.0.0.1 -keyout {folder}/key"
    command += f" -out {folder}/certificate"
    subprocess.run(command.split(), check=True, capture_output=True)
    return folder


def batched(signature, sizes, batches):
    """A signature that runs the requests of several threads as one batch."""
    (spec,) = signature.structured_input_signature[1].values()

    def note(count):
        batches.append(int(count))
        return count

    # As `batching_parameters.txt`.
    @tf.nondifferentiable_batch_function(
        num_batch_threads=2,
        max_batch_size=max(sizes),
        batch_timeout_micros=2000,
        allowed_batch_sizes=sorted(sizes),
        max_enqueued_batches=64,
        enable_large_batch_splitting=False,
    )
    def run(batch):
        note_batch = tf.numpy_function(note, [tf.shape(batch)[0]], tf.int32)
        with tf.control_dependencies([note_batch]):
            return signature(**{spec.name: tf.identity(batch)})

    @tf.function(input_signature=[spec], autograph=False)
    def call(batch):
        return run(batch)

    return lambda **inputs: call(tf.constant(*inputs.values()))


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, server):
        self.server = server

    def Predict(self, request, context):
        self.server.headers = dict(context.invocation_metadata())
        if self.server.response:
            return self.server.response
        spec = request.model_spec
        try:
            number = self.server.find(
                spec.name,
                spec.version.value if spec.HasField("version") else None,
                spec.version_label or None,
            )
            outputs = self.server.predict(
                number,
                spec.signature_name or "serving_default",
                {
                    key: tf.constant(tf.make_ndarray(value))
                    for key, value in request.inputs.items()
                },
            )
        except Failure as failure:
            context.abort(failure.code, str(failure))
        response = PredictResponse()
        for key, value in outputs.items():
            response.outputs[key].CopyFrom(tf.make_tensor_proto(value))
        return response


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, server):
        self.server = server

    def GetModelStatus(self, request, context):
        status = ModelVersionStatus(
            version=self.server.find(request.model_spec.name),
            state=ModelVersionStatus.AVAILABLE,
        )
        return GetModelStatusResponse(model_version_status=[status])


class RestServer(ThreadingHTTPServer):
    def handle_error(self, request, client_address):  # such as no trust
        pass


class RestHandler(BaseHTTPRequestHandler):
    server_of_models = None

    def do_POST(self):
        server = self.server_of_models
        body = self.rfile.read(int(self.headers["Content-Length"]))
        server.headers = {k.lower(): v for k, v in self.headers.items()}
        if self.headers["Content-Encoding"] == "gzip":
            body = gzip.decompress(body)
        if len(body) > server.max_message * 4 / 3:  # in Base64
            self.send(413, {"error": "Content Too Large"})
            return
        if server.cut:
            server.cut -= 1
            self.close_connection = True
            return
        try:
            name, _, version, _, label = re.fullmatch(
                r"(?:/proxy)?/v1/models/([^/:]+)(/versions/(\d+))?(/labels/([^/:]+))?:predict",
                self.path,
            ).groups()
            name, label = unquote(name), label and unquote(label)
            number = server.find(name, version and int(version), label)
            request = json.loads(body)
            outputs = server.predict(
                number,
                request.get("signature_name", "serving_default"),
                {
                    key: tf.constant(
                        [base64.b64decode(one["b64"]) for one in values]
                    )
                    for key, values in request["inputs"].items()
                },
            )
        except Failure as failure:
            self.send(HTTP[failure.code], {"error": str(failure)})
            return
        self.send(
            200,
            {
                "outputs": {
                    name: tf.nest.map_structure(
                        lambda x: x.decode() if isinstance(x, bytes) else x,
                        value.numpy().tolist(),
                    )
                    for name, value in outputs.items()
                }
            },
        )

    def send(self, status, body):
        text = json.dumps(body).encode()
        self.send_response(status)
        if self.headers["Accept-Encoding"] == "gzip":
            text = gzip.compress(text)
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


class RawServer:
    """Gives every connection to `respond(socket)`, inside a `with` block."""

    def __init__(self, respond):
        self.respond = respond

    def __enter__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.closed = threading.Event()
        threading.Thread(target=self.accept, daemon=True).start()
        return self

    def accept(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:  # closed
                return
            threading.Thread(
                target=self.respond_to, args=[connection], daemon=True
            ).start()

    def respond_to(self, connection):
        with connection, suppress(OSError):  # the client may have left
            self.respond(connection, self.closed)

    def __exit__(self, *_):
        self.closed.set()
        self.listener.close()
