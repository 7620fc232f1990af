"""A client of TF Serving for pictures: gRPC or REST, batches, retries.

Example, with a server at hand:

    client = GrpcClient("localhost:8500", "cait_s24", label="stable")
    client.classify([Path("photo.jpg").read_bytes()])
    # [[("goldfish", 0.93), ("tench", 0.02), ...]]
"""

import base64
import http.client
import json
import random
import time
from concurrent.futures import ThreadPoolExecutor

import grpc

# Doubled at each attempt, and spread so that clients do not return together.
FIRST_PAUSE = 0.2  # seconds


class ServingError(OSError):
    """What the server, or the way to it, answered instead of an answer.

    Args:
        code: str, the name of a gRPC status code such as `"NOT_FOUND"`.
        message: str.
    """

    def __init__(self, code, message):
        super().__init__(f"{code}: {message}")
        self.code = code


class Client:
    """What both protocols share: which model, how long, how often.

    Args:
        address: str, `host:port`.
        model: str. Name of the served model.
        version: int, the version to ask; or
        label: str, such as `"stable"`. Without both, the newest version.
        timeout: float. Seconds that one request may take.
        attempts: int > 0. How often a request is sent while the server is
            unavailable; other failures are not tried again.

    Raises:
        ValueError: both a version and a label are given.
    """

    def __init__(
        self,
        address,
        model,
        version=None,
        label=None,
        timeout=30.0,
        attempts=5,
    ):
        if version is not None and label is not None:
            raise ValueError(
                f"Give a version or a label. Received: version={version} and "
                f"label={label!r}."
            )
        self.address = address
        self.model = model
        self.version = version
        self.label = label
        self.timeout = timeout
        self.attempts = attempts

    def classify(self, pictures):
        """The best classes of encoded pictures, asked for in one request.

        Args:
            pictures: list of bytes.

        Returns:
            For each picture a list of `(label, score)`, best first.

        Raises:
            ServingError: there is no answer; its `code` says why.
        """
        for attempt in range(self.attempts):
            try:
                classes, scores = self.predict(pictures)
                break
            except ServingError as error:
                last = attempt == self.attempts - 1
                if error.code != "UNAVAILABLE" or last:
                    raise
                pause = FIRST_PAUSE * 2**attempt
                time.sleep(pause * random.uniform(0.5, 1.5))
        return [
            list(zip(names, map(float, row), strict=True))
            for names, row in zip(classes, scores, strict=True)
        ]


class GrpcClient(Client):
    """Asks by gRPC, the faster protocol. Its port is 8500 by default."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        from tensorflow_serving.apis.prediction_service_pb2_grpc import (
            PredictionServiceStub,
        )

        unlimited = ("grpc.max_receive_message_length", -1)
        self.channel = grpc.insecure_channel(self.address, [unlimited])
        self.stub = PredictionServiceStub(self.channel)

    def predict(self, pictures):
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
            tf.make_tensor_proto(pictures, tf.string, (len(pictures),))
        )
        try:
            response = self.stub.Predict(request, timeout=self.timeout)
        except grpc.RpcError as error:
            raise ServingError(
                error.code().name, f"{self.address}: {error.details()}"
            ) from None
        classes = tf.make_ndarray(response.outputs["classes"])
        scores = tf.make_ndarray(response.outputs["scores"])
        return [[name.decode() for name in row] for row in classes], scores


# The server's translation of status codes to those of HTTP, backwards.
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
    """Asks by REST, with nothing but the standard library. Port 8501."""

    def predict(self, pictures):
        path = f"/v1/models/{self.model}"
        if self.version is not None:
            path += f"/versions/{self.version}"
        if self.label is not None:
            path += f"/labels/{self.label}"
        encoded = [
            {"b64": base64.b64encode(picture).decode()} for picture in pictures
        ]
        outputs = self.post(
            f"{path}:predict", {"inputs": {"image_bytes": encoded}}
        )["outputs"]
        return outputs["classes"], outputs["scores"]

    def post(self, path, body):
        connection = http.client.HTTPConnection(
            self.address, timeout=self.timeout
        )
        try:
            connection.request("POST", path, json.dumps(body))
            response = connection.getresponse()
            text = response.read()
        except TimeoutError:
            raise ServingError(
                "DEADLINE_EXCEEDED",
                f"{self.address} did not answer within {self.timeout} s",
            ) from None
        except (OSError, http.client.HTTPException) as error:
            raise ServingError(
                "UNAVAILABLE", f"{self.address}: {error or type(error)}"
            ) from None
        finally:
            connection.close()
        try:
            answer = json.loads(text)
        except ValueError:
            answer = {"error": text[:200].decode(errors="replace")}
        if response.status != 200:
            raise ServingError(
                CODES.get(response.status, "UNKNOWN"),
                f"{self.address}: {answer.get('error', response.reason)}",
            )
        return answer


def classify_all(client, pictures, batch_size=8, concurrency=1):
    """Classifies any number of pictures in batches.

    Of a batch in which one picture is broken, each is asked for alone.

    Args:
        client: `GrpcClient` or `RestClient`.
        pictures: list of paths.
        batch_size: int > 0, at most the server's largest batch.
        concurrency: int > 0. How many requests are under way at a time.

    Yields:
        For each picture, in order, a list of `(label, score)`, best first, or
        the `OSError` that it ended with.
    """

    def answers(batch):
        try:
            encoded = [picture.read_bytes() for picture in batch]
            return client.classify(encoded)
        except OSError as error:
            is_broken = getattr(error, "code", "INVALID_ARGUMENT")
            if len(batch) > 1 and is_broken == "INVALID_ARGUMENT":
                return [answer for one in batch for answer in answers([one])]
            return len(batch) * [error]

    batches = [
        pictures[start : start + batch_size]
        for start in range(0, len(pictures), batch_size)
    ]
    with ThreadPoolExecutor(concurrency) as pool:
        for batch in pool.map(answers, batches):
            yield from batch
