"""A client for image models on TensorFlow Serving: gRPC or REST.

client = GrpcClient("localhost:8500", "cait_s24", label="stable")
client.classify([Path("photo.jpg").read_bytes()])
# [[("goldfish", 0.93), ("tench", 0.02), ...]]

For an image that the server refuses, the list has a `ServingError`.
"""

import base64
import http.client
import json
import math
import random
import re
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc

# The best classes of one image, as pairs of label and score.
Best = list[tuple[str, float]]

# Seconds. Doubled at each attempt, and varied to spread clients out.
FIRST_PAUSE = 0.2
MAX_RESPONSE_BYTES = 64 << 20
MAX_CLASSES = 100_000


class ServingError(OSError):
    """Raised when a request fails.

    Args:
        code: name of a gRPC status code, such as `"NOT_FOUND"`.
        message: what happened. Control characters are removed.
    """

    def __init__(self, code: str, message: str):
        super().__init__(f"{code}: {printable(message)}")
        self.code = code


class Client(ABC):
    """What both protocols share: model, deadline and retries.

    Args:
        address: `"HOST:PORT"`.
        model: name of the served model.
        version: version to use, or
        label: its label, such as `"stable"`. With neither, the newest version.
        timeout: seconds for one request, from connecting to the last byte.
        attempts: int > 0. How often to send a request while the server is
            unavailable. Other failures are not retried.

    Raises:
        ValueError: an argument is out of range, or both a version and a label
            are given.
    """

    def __init__(
        self,
        address: str,
        model: str,
        version: int | None = None,
        label: str | None = None,
        timeout: float = 30.0,
        attempts: int = 5,
    ):
        if version is not None and label is not None:
            raise ValueError(
                f"Give a version or a label, not both. Got {version} and "
                f"{label!r}."
            )
        if not 0 < timeout < math.inf:
            raise ValueError(f"timeout must be positive. Got {timeout}.")
        if attempts < 1:
            raise ValueError(f"attempts must be at least 1. Got {attempts}.")
        check_address(address)
        self.address = address
        self.model = model
        self.version = version
        self.label = label
        self.timeout = timeout
        self.attempts = attempts

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
        for attempt in range(1, self.attempts + 1):
            try:
                return check_predictions(*self.predict(images), len(images))
            except ServingError as error:
                if error.code != "UNAVAILABLE" or attempt == self.attempts:
                    raise
                pause = FIRST_PAUSE * 2 ** (attempt - 1)
                time.sleep(pause * random.uniform(0.5, 1.5))
        raise AssertionError("unreachable")

    @abstractmethod
    def predict(self, images: Sequence[bytes]) -> tuple[Any, Any, Any]:
        """Sends one request; returns what the server does.

        Returns:
            Labels, scores, and the errors of the images, which servers of a
            strict model do not send: empty strings then.
        """


class GrpcClient(Client):
    """A client for gRPC, the faster protocol. The default port is 8500."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        from tensorflow_serving.apis.prediction_service_pb2_grpc import (
            PredictionServiceStub,
        )

        limit = ("grpc.max_receive_message_length", MAX_RESPONSE_BYTES)
        channel = grpc.insecure_channel(self.address, [limit])
        self.stub = PredictionServiceStub(channel)

    def predict(self, images: Sequence[bytes]) -> tuple[Any, Any, Any]:
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
            response = self.stub.Predict(request, timeout=self.timeout)
        except grpc.RpcError as error:
            raise ServingError(
                error.code().name, f"{self.address}: {error.details()}"
            ) from None
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
        except (TypeError, ValueError, AttributeError) as error:
            raise invalid(f"{error}") from None
        return labels, scores.tolist(), errors


# HTTP status codes for the codes of gRPC, as the server translates them.
CODES = {
    400: "INVALID_ARGUMENT",
    404: "NOT_FOUND",
    412: "FAILED_PRECONDITION",
    413: "RESOURCE_EXHAUSTED",
    429: "RESOURCE_EXHAUSTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


class RestClient(Client):
    """A client for REST. The default port is 8501."""

    def predict(self, images: Sequence[bytes]) -> tuple[Any, Any, Any]:
        """Calls `:predict`."""
        path = f"/v1/models/{self.model}"
        if self.version is not None:
            path += f"/versions/{self.version}"
        if self.label is not None:
            path += f"/labels/{self.label}"
        encoded = [
            {"b64": base64.b64encode(image).decode()} for image in images
        ]
        response = self.post(
            f"{path}:predict", {"inputs": {"image_bytes": encoded}}
        )
        try:
            outputs = response["outputs"]
            errors = outputs.get("error", len(images) * [""])
            return outputs["classes"], outputs["scores"], errors
        except (TypeError, KeyError, AttributeError):
            raise invalid("it has no outputs classes and scores") from None

    def post(self, path: str, body: Any) -> Any:
        """Sends JSON and returns the JSON of the response."""
        status, reason, text = self.exchange(path, json.dumps(body).encode())
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            content = None
        if 300 <= status < 400:
            raise ServingError(
                "UNKNOWN",
                f"{self.address} redirects requests ({status} {reason}). "
                "Give the address of TensorFlow Serving itself.",
            )
        if status != 200:
            if isinstance(content, dict) and "error" in content:
                reason = str(content["error"])
            raise ServingError(
                CODES.get(status, "UNKNOWN"), f"{self.address}: {reason}"
            )
        if content is None:
            raise invalid("it is not JSON")
        return content

    def exchange(self, path: str, body: bytes) -> tuple[int, str, bytes]:
        """One HTTP request within the timeout: status, reason and content."""
        deadline = time.monotonic() + self.timeout
        connection = http.client.HTTPConnection(
            self.address, timeout=self.timeout
        )
        expired = threading.Event()
        timer = None
        try:
            connection.connect()
            sock = connection.sock

            def expire() -> None:  # ends a response that comes byte by byte
                expired.set()
                with suppress(OSError):  # it may be closed already
                    sock.shutdown(socket.SHUT_RDWR)

            timer = threading.Timer(deadline - time.monotonic(), expire)
            timer.daemon = True
            timer.start()
            headers = {"Content-Type": "application/json"}
            connection.request("POST", path, body, headers)
            response = connection.getresponse()
            text = response.read(MAX_RESPONSE_BYTES + 1)
            if response.length and len(text) <= MAX_RESPONSE_BYTES:
                raise http.client.IncompleteRead(text, response.length)
            if expired.is_set():
                raise TimeoutError
        except (OSError, http.client.HTTPException) as error:
            if expired.is_set() or isinstance(error, TimeoutError):
                raise ServingError(
                    "DEADLINE_EXCEEDED",
                    f"{self.address} did not respond within {self.timeout} s",
                ) from None
            raise ServingError(
                "UNAVAILABLE", f"{self.address}: {error or type(error)}"
            ) from None
        finally:
            if timer:
                timer.cancel()
            connection.close()
        if len(text) > MAX_RESPONSE_BYTES:
            raise invalid(f"it has more than {MAX_RESPONSE_BYTES} bytes")
        return response.status, response.reason, text


def classify_all(
    client: Client,
    images: Sequence[Path],
    batch_size: int = 8,
    concurrency: int = 1,
) -> Iterator[Best | OSError]:
    """Classifies any number of image files in batches.

    If a batch fails for an invalid image, as on a server of a strict model, its
    images are retried one by one.

    Args:
        client: `GrpcClient` or `RestClient`.
        images: paths of the files.
        batch_size: int > 0, at most the server's largest batch.
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

    def classify(batch: Sequence[Path]) -> Sequence[Best | OSError]:
        try:
            return client.classify([read_image(image) for image in batch])
        except OSError as error:
            code = getattr(error, "code", "INVALID_ARGUMENT")
            if len(batch) > 1 and code == "INVALID_ARGUMENT":
                return [classify([image])[0] for image in batch]
            return len(batch) * [error]

    batches = [
        images[start : start + batch_size]
        for start in range(0, len(images), batch_size)
    ]
    with ThreadPoolExecutor(concurrency) as pool:
        for results in pool.map(classify, batches):
            yield from results


def read_image(path: Path) -> bytes:
    """Reads a file, but not a pipe or device, which may never end."""
    if path.exists() and not path.is_file():
        raise OSError(f"{str(path)!r} is not a file.")
    return path.read_bytes()


def check_address(address: str) -> None:
    """Checks that an address is `HOST:PORT`.

    Raises:
        ValueError: it is not.

    Example:
    >>> check_address("localhost:8500")
    """
    match = re.fullmatch(r"([\w.-]+|\[[0-9A-Fa-f:.]+\]):(\d{1,5})", address)
    if not match or not 0 < int(match[2]) < 1 << 16:
        raise ValueError(
            "The server must be HOST:PORT, such as localhost:8500. Got "
            f"{address!r}."
        )


def check_predictions(
    classes: Any, scores: Any, errors: Any, count: int
) -> list[Best | ServingError]:
    """Pairs the labels and scores of a response.

    Args:
        classes: lists of labels, one per image.
        scores: lists of numbers, one per image.
        errors: why each image was refused, empty if it was not.
        count: number of images.

    Raises:
        ServingError: they have another form, or a score is not finite.

    Example:
    >>> check_predictions([["cat"]], [[0.9]], [""], 1)
    [[('cat', 0.9)]]
    """
    if not all(isinstance(one, list) for one in (classes, scores, errors)):
        raise invalid("classes, scores and errors must be lists")
    if not len(classes) == len(scores) == len(errors) == count:
        raise invalid(
            f"it has {len(classes)} lists of classes, {len(scores)} of scores "
            f"and {len(errors)} errors for {count} images"
        )
    if not all(isinstance(error, str) for error in errors):
        raise invalid("an error must be text")
    best: list[Best | ServingError] = []
    for names, values, error in zip(classes, scores, errors, strict=True):
        if error:
            best.append(ServingError("INVALID_ARGUMENT", error))
            continue
        if not (
            isinstance(names, list)
            and isinstance(values, list)
            and 0 < len(names) == len(values) <= MAX_CLASSES
            and all(isinstance(name, str) for name in names)
            and all(type(value) in (int, float) for value in values)
        ):
            raise invalid("an image needs as many labels as scores")
        if not all(map(math.isfinite, values)):
            raise invalid("a score is not finite")
        best.append(
            [
                (printable(name), float(value))
                for name, value in zip(names, values, strict=True)
            ]
        )
    return best


def invalid(reason: str) -> ServingError:
    """The error for a response that is not one of our models'."""
    return ServingError(
        "INTERNAL",
        f"The response is not that of an image classifier: {reason}.",
    )


def printable(text: str) -> str:
    """Text on one line, without characters that control a terminal.

    Example:
    >>> printable("cat\\x1b[2J\\ndog")
    'cat?[2J dog'
    """
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else "?" for c in line)
