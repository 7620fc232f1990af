"""A client for image models on TensorFlow Serving: gRPC or REST.

client = GrpcClient("localhost:8500", "cait_s24", label="stable")
client.classify([Path("photo.jpg").read_bytes()])
# [[("goldfish", 0.93), ("tench", 0.02), ...]]

For an image that the server refuses, the list has a `ServingError`.
"""

import base64
import json
import math
import random
import re
import ssl
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc

from export.serving.connection import (
    MAX_RESPONSE_BYTES,
    check_headers,
    parse_address,
    post,
    read_ca,
)
from export.serving.responses import (
    MAX_CLASSES,
    Best,
    ServingError,
    check_predictions,
    connection_problem,
    invalid,
    without_graph,
)

# Seconds. Doubled at each attempt, and varied to spread clients out.
FIRST_PAUSE = 0.2
CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_RESPONSE_BYTES),
    # gRPC connects anew only after minutes, if a server was away for long.
    ("grpc.max_reconnect_backoff_ms", 1000),
]
NO_OUTPUTS = "it has no outputs classes and scores"


class Client(ABC):
    """What both protocols share: model, deadline and retries.

    Args:
        address: `"HOST:PORT"`; for REST also `"http://HOST[:PORT][/PATH]"` or
            `"https://..."`.
        model: name of the served model.
        version: version to use, or
        label: its label, such as `"stable"`. With neither, the newest version.
        timeout: seconds for one request with its retries, from connecting to
            the last byte.
        attempts: int > 0. How often to send a request while the server is
            unavailable. Other failures are not retried.
        tls: whether to encrypt the connection; `https://` does.
        ca: PEM file of the authorities that the server's certificate may be
            from; `None` trusts those of the system (REST) or of gRPC.
        headers: headers of every request, such as `Authorization`.
        gzip: whether to compress requests.

    Raises:
        ValueError: an argument is out of range, or both a version and a label
            are given.
        OSError: `ca` cannot be read.
    """

    def __init__(
        self,
        address: str,
        model: str,
        version: int | None = None,
        label: str | None = None,
        timeout: float = 30.0,
        attempts: int = 5,
        tls: bool = False,
        ca: str | Path | None = None,
        headers: Mapping[str, str] | None = None,
        gzip: bool = False,
    ):
        if version is not None and label is not None:
            raise ValueError(
                f"Give a version or a label, not both. Got {version} and "
                f"{label!r}."
            )
        if "" in (model, label):  # without a label, gRPC means the newest
            raise ValueError(
                f"The names of a model and of a label must not be empty. Got "
                f"the model {model!r} and the label {label!r}."
            )
        if not 0 < timeout < math.inf:
            raise ValueError(f"timeout must be positive. Got {timeout}.")
        if attempts < 1:
            raise ValueError(f"attempts must be at least 1. Got {attempts}.")
        self.address = parse_address(address, tls)
        if ca and not self.address.tls:
            raise ValueError(
                "The certificates of --ca are for TLS. Add --tls, or omit --ca."
            )
        self.model = model
        self.version = version
        self.label = label
        self.timeout = timeout
        self.attempts = attempts
        self.ca = read_ca(ca) if ca else None
        self.headers = check_headers(headers or {})
        self.gzip = gzip

    def classify(self, images: Sequence[bytes]) -> list[Best | ServingError]:
        """Classifies encoded images in one request.

        Args:
            images: JPEG, PNG, GIF or BMP files.

        Returns:
            The best classes of each image, best first, or the `ServingError`
            that tells why the image was refused.

        Raises:
            ServingError: the request failed as a whole; `code` says how.
        """
        deadline = time.monotonic() + self.timeout
        for attempt in range(1, self.attempts + 1):
            left = max(deadline - time.monotonic(), 1e-3)
            try:
                answers = self.predict(images, left)
                return check_predictions(*answers, len(images))
            except ServingError as error:
                pause = FIRST_PAUSE * 2 ** (attempt - 1)
                pause *= random.uniform(0.5, 1.5)
                if (
                    error.code != "UNAVAILABLE"
                    or attempt == self.attempts
                    or time.monotonic() + pause > deadline
                ):
                    raise
                time.sleep(pause)
        raise AssertionError("unreachable")

    @abstractmethod
    def predict(
        self, images: Sequence[bytes], timeout: float
    ) -> tuple[Any, Any, Any]:
        """Sends one request; returns what the server does.

        Args:
            images: JPEG, PNG, GIF or BMP files.
            timeout: seconds.

        Returns:
            Labels, scores, and the errors of the images, which servers of a
            strict model do not send: empty strings then.
        """


class GrpcClient(Client):
    """A client for gRPC, the faster protocol. The default port is 8500."""

    def __init__(self, address: str, *args: Any, **kwargs: Any):
        super().__init__(address, *args, **kwargs)
        from tensorflow_serving.apis.prediction_service_pb2_grpc import (
            PredictionServiceStub,
        )

        if "://" in address:
            raise ValueError(
                "gRPC takes HOST:PORT, such as localhost:8500, and --tls "
                f"instead of https://. Got {address!r}."
            )
        for name in self.headers:
            if name.lower().endswith("-bin"):
                raise ValueError(
                    "gRPC takes no text in headers whose names end in -bin. "
                    f"Got {name!r}. Omit it, or use REST."
                )
        host = self.address.host
        compression = grpc.Compression.Gzip if self.gzip else None
        if self.address.tls:
            trusted = grpc.ssl_channel_credentials(self.ca)
            channel = grpc.secure_channel(
                host, trusted, CHANNEL_OPTIONS, compression
            )
        else:
            channel = grpc.insecure_channel(host, CHANNEL_OPTIONS, compression)
        self.stub = PredictionServiceStub(channel)
        self.metadata = [
            (name.lower(), value) for name, value in self.headers.items()
        ]

    def predict(
        self, images: Sequence[bytes], timeout: float
    ) -> tuple[Any, Any, Any]:
        """Calls Predict."""
        import tensorflow as tf
        from tensorflow_serving.apis.predict_pb2 import PredictRequest

        request = PredictRequest()
        request.model_spec.name = self.model
        request.model_spec.signature_name = "serving_default"
        if self.version is not None:
            request.model_spec.version.value = self.version
        if self.label is not None:
            request.model_spec.version_label = self.label
        request.inputs["image_bytes"].CopyFrom(
            tf.make_tensor_proto(list(images), tf.string, (len(images),))
        )
        try:
            response = self.stub.Predict(
                request, timeout=timeout, metadata=self.metadata
            )
        except grpc.RpcError as error:
            code, host = error.code().name, self.address.host
            message = without_graph(str(error.details()))
            if code == "UNAVAILABLE":
                raise connection_problem(host, message) from None
            raise ServingError(code, f"{host}: {message}") from None
        if not {"classes", "scores"} <= {*response.outputs}:
            raise invalid(NO_OUTPUTS)
        tensors = [response.outputs[name] for name in ("classes", "scores")]
        for tensor in tensors:  # before a small message becomes a large array
            shape = [side.size for side in tensor.tensor_shape.dim]
            if len(shape) != 2 or not (
                shape[0] == len(images) and 0 < shape[1] <= MAX_CLASSES
            ):
                raise invalid(f"a tensor has the shape {shape}")
        try:
            classes, scores = map(tf.make_ndarray, tensors)
            labels = [[name.decode() for name in row] for row in classes]
            errors = len(images) * [""]
            if "error" in response.outputs:
                texts = response.outputs["error"].string_val
                errors = [text.decode() for text in texts]
        except (TypeError, ValueError, AttributeError, KeyError) as error:
            raise invalid(f"{error}") from None
        return labels, scores.tolist(), errors


# HTTP status codes for the codes of gRPC, as the server or a proxy before it
# translates them.
CODES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    412: "FAILED_PRECONDITION",
    413: "RESOURCE_EXHAUSTED",
    429: "RESOURCE_EXHAUSTED",
    502: "UNAVAILABLE",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


class RestClient(Client):
    """A client for REST. The default port is 8501."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        trusted = self.ca.decode() if self.ca else None
        self.context = (
            ssl.create_default_context(cadata=trusted)
            if self.address.tls
            else None
        )

    def predict(
        self, images: Sequence[bytes], timeout: float
    ) -> tuple[Any, Any, Any]:
        """Calls `:predict`."""
        path = f"/v1/models/{quote(self.model, safe='')}"
        if self.version is not None:
            path += f"/versions/{self.version}"
        if self.label is not None:
            path += f"/labels/{quote(self.label, safe='')}"
        encoded = [
            {"b64": base64.b64encode(image).decode()} for image in images
        ]
        response = self.post(
            f"{path}:predict", {"inputs": {"image_bytes": encoded}}, timeout
        )
        try:
            outputs = response["outputs"]
            errors = outputs.get("error", len(images) * [""])
            return outputs["classes"], outputs["scores"], errors
        except (TypeError, KeyError, AttributeError):
            raise invalid(NO_OUTPUTS) from None

    def post(self, path: str, body: Any, timeout: float) -> Any:
        """Sends JSON and returns the JSON of the response."""
        status, reason, text = post(
            self.address,
            path,
            json.dumps(body).encode(),
            timeout,
            self.context,
            self.headers,
            self.gzip,
        )
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            content = None
        if 300 <= status < 400:
            raise ServingError(
                "UNKNOWN",
                f"{self.address.host} redirects requests ({status} {reason}). "
                "Give the address of TensorFlow Serving itself.",
            )
        if status != 200:
            if isinstance(content, dict) and "error" in content:
                reason = without_graph(str(content["error"]))
            if status == 413:
                reason = f"The request is too large ({reason})."
            raise ServingError(
                CODES.get(status, "UNKNOWN"), f"{self.address.host}: {reason}"
            )
        if content is None:
            raise invalid("it is not JSON")
        return content


def classify_all(
    client: Client,
    images: Sequence[Path],
    batch_size: int = 8,
    concurrency: int = 1,
) -> Iterator[Best | OSError]:
    """Classifies any number of image files in batches.

    If a batch fails for an invalid image, as with a strict model, its images
    are retried one by one. If it is larger than the server's batches, or than
    a proxy's requests, it is divided, and a line on stderr says so.

    Args:
        client: `GrpcClient` or `RestClient`.
        images: paths of the files.
        batch_size: int > 0. Number of images per request.
        concurrency: int > 0. Number of simultaneous requests.

    Yields:
        For each image, in order, its best classes, or the `OSError` that
        prevented it.

    Raises:
        ValueError: `batch_size` or `concurrency` is not positive.
    """
    for name, value in (
        ("batch_size", batch_size),
        ("concurrency", concurrency),
    ):
        if value < 1:
            raise ValueError(f"{name} must be at least 1. Got {value}.")
    limit = batch_size  # that of the server, once it is known

    def classify(batch: Sequence[Path]) -> Sequence[Best | OSError]:
        nonlocal limit
        if len(batch) > limit:
            return classify_parts(batch, limit)
        try:
            return client.classify([read_image(image) for image in batch])
        except OSError as error:
            found = batch_limit(error, len(batch))
            if found and found < len(batch):
                if found < limit:
                    print(batch_note(found), file=sys.stderr)
                limit = min(found, limit)
                return classify_parts(batch, found)
            code = getattr(error, "code", "INVALID_ARGUMENT")
            if len(batch) > 1 and code == "INVALID_ARGUMENT":
                return classify_parts(batch, 1)
            return len(batch) * [error]

    def classify_parts(
        batch: Sequence[Path], size: int
    ) -> Sequence[Best | OSError]:
        parts = map(classify, batches_of(batch, size))
        return [answer for part in parts for answer in part]

    # Unlike an executor's, its threads do not delay Ctrl-C by a timeout.
    with ThreadPool(concurrency) as pool:
        for results in pool.imap(classify, batches_of(images, batch_size)):
            yield from results


def batches_of(images: Sequence[Path], size: int) -> list[Sequence[Path]]:
    """The images in batches of a size, of which the last may be smaller."""
    starts = range(0, len(images), size)
    return [images[start : start + size] for start in starts]


def batch_limit(error: OSError, size: int) -> int | None:
    """The batch to try after an error that a larger one has caused.

    Args:
        error: of a request.
        size: images in the request.

    Returns:
        That of the server, half the size if bytes are the limit, or `None`.

    Example:
    >>> batch_limit(OSError("The request is too large (413)."), 8)
    4
    """
    match = re.search(
        r"larger than maximum input batch size (\d{1,9})", str(error)
    )
    if match:
        return int(match[1])
    too_large = "request is too large|message larger than max"
    return size // 2 if re.search(too_large, str(error)) else None


def batch_note(limit: int) -> str:
    """What to say about requests that are divided."""
    return (
        f"The server takes {limit} images per request, so larger requests are "
        f"divided. --batch-size {limit} avoids that."
    )


def read_image(path: Path) -> bytes:
    """Reads a file, but not a pipe or device, which may never end."""
    if path.exists() and not path.is_file():
        raise OSError(f"{str(path)!r} is not a file.")
    return path.read_bytes()
