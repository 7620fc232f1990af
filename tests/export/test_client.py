"""The client against good and bad servers on loopback."""

import gzip
import json
import math
import os
import random
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import export.serving.client
import export.serving.connection
from benchmarks import image_files
from export.__main__ import main
from export.serving.client import (
    GrpcClient,
    RestClient,
    ServingError,
    classify_all,
)
from export.serving.model_folder import write_version
from keras_cait.decoding.refusals import UNKNOWN
from tests.helpers.commands import exit_status
from tests.helpers.models import LABELS, randomise, small
from tests.helpers.reference import ENCODED, IMAGES
from tests.helpers.serving import RawServer, Server, make_certificate


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Two versions with other weights, `stable` and `canary`."""
    folder = tmp_path_factory.mktemp("models") / "cait_tiny"
    for seed in (0, 1):
        model = randomise(small(), seed)
        write_version(model, LABELS, folder, batch_sizes=(1,))
    with Server(
        folder,
        {"stable": 1, "canary": 2},
        batch_sizes=(1, 2, 4, 8),
        certificate=make_certificate(tmp_path_factory.mktemp("certificate")),
    ) as server:
        for version in server.versions:  # the first run takes seconds
            server.predict(version, "serving_default", {"image_bytes": ENCODED})
        yield server


@pytest.fixture
def server(served, monkeypatch):
    served.requests = served.unavailable = served.cut = 0
    served.batches.clear()
    served.delay, served.response, served.strict = 0.0, None, False
    monkeypatch.setattr(export.serving.client, "FIRST_PAUSE", 0.01)
    return served


@pytest.fixture(params=["grpc", "rest"])
def connect(request, server):
    """Makes a client of one protocol."""

    def connect(model="cait_tiny", **kwargs):
        if request.param == "grpc":
            return GrpcClient(server.grpc_address, model, **kwargs)
        return RestClient(server.rest_address, model, **kwargs)

    return connect


def direct(server, version, encoded):
    """The SavedModel's own predictions."""
    import tensorflow as tf

    signature = server.versions[version].signatures["serving_default"]
    result = signature(image_bytes=tf.constant(encoded))
    return [
        [
            (name.decode(), float(score))
            for name, score in zip(*row, strict=True)
        ]
        for row in zip(
            result["classes"].numpy(), result["scores"].numpy(), strict=True
        )
    ]


def assert_same(found, expected):
    assert len(found) == len(expected)
    for row, expected_row in zip(found, expected, strict=True):
        assert [name for name, _ in row] == [name for name, _ in expected_row]
        for (_, score), (_, other) in zip(row, expected_row, strict=True):
            assert score == pytest.approx(other, rel=1e-5)


@pytest.mark.parametrize("count", [1, 3, 6])
def test_predictions_are_the_models(server, connect, count):
    encoded = ENCODED[:count]
    assert_same(connect().classify(encoded), direct(server, 2, encoded))


def test_versions_and_labels(server, connect):
    first, second = (direct(server, version, ENCODED) for version in (1, 2))
    assert first != second
    assert_same(connect(version=1).classify(ENCODED), first)
    assert_same(connect(label="stable").classify(ENCODED), first)
    assert_same(connect(label="canary").classify(ENCODED), second)
    with pytest.raises(ValueError, match="version or a label"):
        connect(version=1, label="stable")


def test_a_busy_server_is_retried(server, connect):
    server.unavailable = 2
    assert_same(connect().classify(ENCODED), direct(server, 2, ENCODED))
    assert server.requests == 3


def test_retries_end_with_the_time(server, connect, monkeypatch):
    monkeypatch.setattr(export.serving.client, "FIRST_PAUSE", 60)
    server.unavailable = 9
    start = time.perf_counter()
    with pytest.raises(ServingError, match=r"UNAVAILABLE.*busy"):
        connect(timeout=20).classify(ENCODED)
    assert time.perf_counter() - start < 20


def test_patience_ends(server, connect):
    server.unavailable = 9
    with pytest.raises(ServingError, match=r"UNAVAILABLE.*busy"):
        connect(attempts=3).classify(ENCODED)
    assert server.requests == 3


@pytest.mark.parametrize(
    ("arguments", "encoded", "code", "message"),
    [
        ({"model": "other"}, ENCODED, "NOT_FOUND", "other"),
        ({"version": 7}, ENCODED, "NOT_FOUND", "version 7"),
        ({"label": "beta"}, ENCODED, "INVALID_ARGUMENT", "beta"),
        ({"model": "a b/ä"}, ENCODED, "NOT_FOUND", "found: a b/ä$"),
        ({"label": "a b/ä"}, ENCODED, "INVALID_ARGUMENT", "label: a b/ä$"),
        (
            {},
            [ENCODED[0], b"no"],
            "INVALID_ARGUMENT",
            r"\d: assertion failed: \[Refused .* at\] \[1\] \[A reason.\]$",
        ),
    ],
)
def test_other_errors_are_not_retried(
    server, connect, arguments, encoded, code, message
):
    server.strict = True
    with pytest.raises(ServingError, match=message) as error:
        connect(**arguments).classify(encoded)
    assert error.value.code == code
    assert server.requests <= 1


def test_a_refused_image_leaves_the_others(server, connect):
    results = connect().classify([ENCODED[0], b"no", *ENCODED[1:]])
    error = results.pop(1)
    assert error.code == "INVALID_ARGUMENT"
    assert str(error).endswith("Not a JPEG, PNG, GIF or BMP image.")
    assert_same(results, direct(server, 2, ENCODED))
    assert server.requests == 1


def test_a_slow_server(server, connect):
    server.delay = 0.5
    with pytest.raises(ServingError) as error:
        connect(timeout=0.1).classify(ENCODED)
    assert error.value.code == "DEADLINE_EXCEEDED"


def test_a_cut_connection_is_retried(server):
    server.cut = 1
    client = RestClient(server.rest_address, "cait_tiny")
    assert_same(client.classify(ENCODED), direct(server, 2, ENCODED))


def test_no_server(connect):
    client = connect(attempts=2)
    client = type(client)("127.0.0.1:1", "cait_tiny", attempts=2)
    with pytest.raises(ServingError, match=r"127\.0\.0\.1:1") as error:
        client.classify(ENCODED)
    assert error.value.code == "UNAVAILABLE"


@pytest.mark.large
def test_a_server_that_was_away_is_found_at_once(monkeypatch):
    monkeypatch.setattr(export.serving.client, "FIRST_PAUSE", 0.01)
    with socket.socket() as port:
        port.bind(("127.0.0.1", 0))  # it refuses until it listens
        address = f"127.0.0.1:{port.getsockname()[1]}"
        client = GrpcClient(address, "cait_tiny", timeout=1.7, attempts=1)
        away = time.monotonic() + 6.2  # gRPC tries after 5 s, and after 9 s
        while time.monotonic() < away:
            with pytest.raises(ServingError, match="refused"):
                client.classify([])
            time.sleep(0.1)
        port.listen()
        client.attempts = 99
        with pytest.raises(ServingError):
            client.classify([])
        port.setblocking(False)
        port.accept()[0].close()


def test_too_large_a_message(server):
    client = GrpcClient(server.grpc_address, "cait_tiny")
    with pytest.raises(ServingError) as error:
        client.classify([bytes(5 << 20)])
    assert error.value.code == "RESOURCE_EXHAUSTED"


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("concurrency", [1, 4])
def test_broken_images_do_not_spoil_the_rest(
    server, connect, tmp_path, concurrency, strict
):
    server.strict = strict
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    missing = tmp_path / "missing.jpg"
    paths = [*IMAGES[:3], broken, *IMAGES[3:], missing]
    results = list(classify_all(connect(), paths, 2, concurrency))
    assert results[3].code == "INVALID_ARGUMENT"
    assert isinstance(results[-1], FileNotFoundError)
    assert_same(results[:3] + results[4:-1], direct(server, 2, ENCODED))
    assert server.requests == (6 if strict else 4)


@pytest.mark.large
def test_junk_of_one_client_never_fails_another(server):
    """32 clients at once, whose requests the server runs as one."""
    junk = [b"", b"no image", ENCODED[0][:300], image_files.animation("WEBP")]
    expected = direct(server, 2, ENCODED)

    def send(seed):
        connect, address = (
            (GrpcClient, server.grpc_address),
            (RestClient, server.rest_address),
        )[seed % 2]
        client = connect(address, "cait_tiny", timeout=300)
        draw = random.Random(seed)
        for _ in range(2):
            index = draw.randrange(len(ENCODED))
            if draw.random() < 0.2:
                (refused,) = client.classify([draw.choice(junk)])
                assert refused.code == "INVALID_ARGUMENT"
            else:
                assert_same(
                    client.classify([ENCODED[index]]), [expected[index]]
                )

    with ThreadPoolExecutor(32) as clients:
        list(clients.map(send, range(32)))
    assert server.requests == 64
    assert len(server.batches) < 40


@pytest.mark.parametrize("protocol", ["grpc", "rest"])
def test_command(server, protocol, tmp_path, capsys):
    address = getattr(server, f"{protocol}_address")
    folder = str(IMAGES[0].parent)
    options = ["--server", address, "--served-model", "cait_tiny"]
    options += ["--protocol", protocol, "--version-label", "stable"]
    assert exit_status(main, "classify", folder, *options, "--json") == 0
    printed = capsys.readouterr()
    assert "\r" not in printed.err and "\n6 of 6\n" in f"\n{printed.err}"
    expected = direct(server, 1, ENCODED)
    lines = [json.loads(line) for line in printed.out.splitlines()]
    assert [line["image"] for line in lines] == list(map(str, IMAGES))
    assert_same([line["classes"] for line in lines], expected)

    (tmp_path / "broken.jpg").write_bytes(b"no image")
    assert exit_status(main, "classify", IMAGES[0], tmp_path, *options) == 1
    printed = capsys.readouterr().out
    assert expected[0][0][0] in printed
    assert f"broken.jpg: INVALID_ARGUMENT: {UNKNOWN}." in printed


def test_the_batch_limit_of_the_server_is_said(server, connect, capsys):
    results = list(classify_all(connect(), 3 * IMAGES, batch_size=18))
    assert_same(results, 3 * direct(server, 2, ENCODED))
    assert server.requests == 4
    printed = capsys.readouterr().err
    assert printed.count("The server takes 8 images per request") == 1


def test_a_request_that_is_too_large_is_divided(
    server, connect, tmp_path, capsys
):
    """Only an image that is too large by itself has no result."""
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for path, size in zip(paths, (3, 3, 3, 3, 9), strict=True):
        path.write_bytes(ENCODED[0] + bytes(size << 19))
    *results, too_large = classify_all(connect(), paths, batch_size=5)
    assert_same(results, 4 * direct(server, 2, ENCODED[:1]))
    assert too_large.code == "RESOURCE_EXHAUSTED"
    assert "takes 2 images per request" in capsys.readouterr().err


def test_grpc_takes_no_text_in_binary_headers():
    with pytest.raises(ValueError, match=r"Got 'X-Bin'\. Omit it"):
        GrpcClient("localhost:1", "cait", headers={"X-Bin": "abc"})


@pytest.fixture(params=["grpc", "rest"])
def connect_securely(request, server):
    """Makes a client of one protocol that speaks TLS."""

    def connect(**kwargs):
        if request.param == "grpc":
            address, make = server.grpc_tls_address, GrpcClient
        else:
            address, make = server.rest_tls_address, RestClient
        arguments = {"attempts": 2, "tls": True, **kwargs}
        return make(address, "cait_tiny", **arguments)

    return connect


def test_tls_headers_and_gzip(server, connect_securely):
    client = connect_securely(
        ca=server.certificate / "certificate",
        headers={"Authorization": "Bearer a1b2"},
        gzip=True,
    )
    assert_same(client.classify(ENCODED), direct(server, 2, ENCODED))
    assert server.headers["authorization"] == "Bearer a1b2"
    encoding = server.headers.get("content-encoding", "gzip of gRPC")
    assert encoding.startswith("gzip")


def test_a_certificate_that_is_not_trusted(server, connect_securely):
    with pytest.raises(ServingError, match=r"not trusted.*--ca FILE") as error:
        connect_securely().classify(ENCODED)
    assert error.value.code == "UNAUTHENTICATED"
    assert server.requests == 0


def test_tls_to_a_port_without_it(server, connect):
    client = type(connect())
    plain = {GrpcClient: server.grpc_address, RestClient: server.rest_address}
    with pytest.raises(ServingError, match="does not speak TLS"):
        client(plain[client], "cait_tiny", tls=True).classify(ENCODED)


@pytest.mark.parametrize(
    ("client", "message"),
    [
        (GrpcClient, "does not speak gRPC. Add --protocol rest"),
        (RestClient, "does not speak HTTP. For gRPC, omit --protocol"),
    ],
)
def test_the_port_of_the_other_protocol(server, client, message):
    other = {GrpcClient: server.rest_address, RestClient: server.grpc_address}
    with pytest.raises(ServingError, match=message):
        client(other[client], "cait_tiny").classify(ENCODED)


def test_a_url(server):
    client = RestClient(
        f"https://{server.rest_tls_address}/proxy/",
        "cait_tiny",
        ca=server.certificate / "certificate",
    )
    assert_same(client.classify(ENCODED), direct(server, 2, ENCODED))
    assert server.headers["content-type"] == "application/json"


def test_command_with_tls(server, capsys):
    options = ["--server", server.grpc_tls_address, "--served-model"]
    options += [
        "cait_tiny",
        "--tls",
        "--ca",
        server.certificate / "certificate",
    ]
    options += ["--header", "X-Key: a:b", "--header", "X-Team: c", "--gzip"]
    assert exit_status(main, "classify", IMAGES[0], *options) == 0
    assert server.headers["x-key"] == "a:b"
    assert server.headers["x-team"] == "c"


def response(body, status="200 OK", headers=""):
    """A REST response of bytes or of an object as JSON."""
    if not isinstance(body, bytes):
        body = json.dumps(body).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
    return head.encode() + body


def outputs(classes, scores, **error):
    content = {"classes": classes, "scores": scores, **error}
    return response({"outputs": content})


def hang(connection, closed):
    closed.wait(30)


def drip(content):
    """Sends a byte each 20 ms, so that no single read times out."""

    def respond(connection, closed):
        for byte in content:
            connection.sendall(bytes([byte]))
            if closed.wait(0.02):
                return

    return respond


def sends(content):
    def respond(connection, closed):
        connection.recv(1 << 20)
        connection.sendall(content)

    return respond


GOOD = outputs([["cat"]], [[0.9]])
BAD_SERVERS = {
    "hangs": (hang, "DEADLINE_EXCEEDED: .*within 0.5 s"),
    "drips its head": (drip(GOOD), "DEADLINE_EXCEEDED"),
    "drips its body": (
        lambda connection, closed: (
            connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n"),
            drip(bytes(500))(connection, closed),
        ),
        "DEADLINE_EXCEEDED",
    ),
    "closes at once": (lambda *_: None, "UNAVAILABLE"),
    "closes in the middle": (sends(GOOD[:-9]), "UNAVAILABLE"),
    "is no HTTP server": (
        sends(b"220 mail ready\r\n"),
        "FAILED_PRECONDITION: .* does not speak HTTP",
    ),
    "sends noise": (sends(response(bytes(range(256)))), "INTERNAL.*not JSON"),
    "nests too deep": (sends(response(b"[" * 100_000)), "INTERNAL.*not JSON"),
    "has no outputs": (sends(response({})), "INTERNAL.*no outputs"),
    "sends a list": (sends(response([1])), "INTERNAL.*no outputs"),
    "redirects": (
        sends(response(b"", "302 Found", "Location: http://other/\r\n")),
        "UNKNOWN.*redirects",
    ),
    "sends too many": (
        sends(outputs([["a"], ["b"]], [[0.1], [0.2]])),
        "INTERNAL.*2 lists of classes, 2 of scores and 1 errors for 1 images",
    ),
    "sends too few": (sends(outputs([], [])), "INTERNAL.*for 1 images"),
    "sends no lists": (sends(outputs(1, 2)), "INTERNAL.*must be lists"),
    "sends more labels": (
        sends(outputs([["a", "b"]], [[0.1]])),
        "INTERNAL.*as many labels as scores",
    ),
    "sends NaN": (sends(outputs([["a"]], [[math.nan]])), "INTERNAL.*finite"),
    "sends infinity": (sends(outputs([["a"]], [[math.inf]])), "finite"),
    "sends a vast number": (sends(outputs([["a"]], [[10**400]])), "finite"),
    "sends text as scores": (sends(outputs([["a"]], [["b"]])), "INTERNAL"),
    "sends too much, compressed": (
        sends(
            response(
                gzip.compress(bytes(100 << 20)),
                headers="Content-Encoding: gzip\r\n",
            )
        ),
        "INTERNAL.*more than 67108864 bytes",
    ),
    "sends no gzip": (
        sends(response(b"{}", headers="Content-Encoding: gzip\r\n")),
        "INTERNAL",
    ),
    "sends scores alone": (sends(outputs("a", [[0.1]])), "INTERNAL"),
    "sends a number as error": (
        sends(outputs([["a"]], [[0.1]], error=[1])),
        "INTERNAL.*must be text",
    ),
    "sends an error for the image": (
        sends(outputs([[""]], [[math.nan]], error=["a\n\x1b[2Jb"])),
        r"INVALID_ARGUMENT: a \?\[2Jb$",
    ),
    "fails with lines": (
        sends(response({"error": "a\n\x1b[2Jb"}, "500 Oops")),
        r"UNKNOWN: .*: a \?\[2Jb$",
    ),
}


@pytest.mark.parametrize("kind", BAD_SERVERS)
def test_a_bad_rest_server_costs_bounded_time(kind, monkeypatch, capsys):
    monkeypatch.setattr(export.serving.client, "FIRST_PAUSE", 0.01)
    respond, message = BAD_SERVERS[kind]
    with RawServer(respond) as server:
        options = ["--server", server.address, "--served-model", "cait"]
        options += ["--protocol", "rest", "--timeout", "0.5"]
        start = time.perf_counter()
        assert exit_status(main, "classify", IMAGES[0], *options) == 1
        assert time.perf_counter() - start < 5
    out, err = capsys.readouterr()
    assert out.count("\n") == 1
    assert re.search(message, out.removeprefix(f"{IMAGES[0]}: ").rstrip())
    assert "1 of 1 images could not be classified" in err


def test_a_response_without_end_is_cut_off(monkeypatch):
    monkeypatch.setattr(export.serving.connection, "MAX_RESPONSE_BYTES", 1000)
    with RawServer(sends(response(bytes(2000)))) as server:
        client = RestClient(server.address, "cait")
        with pytest.raises(ServingError, match="more than 1000 bytes"):
            client.classify(ENCODED[:1])


def test_who_stops_waits_for_no_request():
    responders = iter([sends(GOOD)])

    def answer_once(connection, closed):
        next(responders, hang)(connection, closed)

    with RawServer(answer_once) as server:
        client = RestClient(server.address, "cait")
        results = classify_all(client, IMAGES[:2], batch_size=1)
        assert next(results) == [("cat", 0.9)]
        start = time.perf_counter()
        results.close()  # as Ctrl-C does
        assert time.perf_counter() - start < 5


def test_an_answer_before_the_end_of_the_request():
    with RawServer(sends(response(b"", "413 Too Large"))) as server:
        client = RestClient(server.address, "cait")
        with pytest.raises(ServingError, match="The request is too large"):
            client.classify([bytes(20 << 20)])


@pytest.mark.parametrize("respond", [hang, sends(b"220 mail ready\r\n")])
def test_a_bad_grpc_server_costs_bounded_time(respond, monkeypatch):
    monkeypatch.setattr(export.serving.client, "FIRST_PAUSE", 0.01)
    with RawServer(respond) as server:
        client = GrpcClient(server.address, "cait", timeout=0.5, attempts=2)
        start = time.perf_counter()
        with pytest.raises(ServingError, match=r"speak gRPC|DEADLINE"):
            client.classify(ENCODED[:1])
        assert time.perf_counter() - start < 5


def predictions(**outputs):
    from tensorflow_serving.apis.predict_pb2 import PredictResponse

    response = PredictResponse()
    for name, value in outputs.items():
        response.outputs[name].CopyFrom(value)
    return response


def tensor(values):
    import tensorflow as tf

    return tf.make_tensor_proto(values)


def vast():
    """A message of few bytes that declares 400 GB."""
    proto = tensor(np.full((1, 1), 0.5, "float32"))
    proto.tensor_shape.dim[1].size = 10**11
    return proto


@pytest.mark.parametrize(
    "classes, scores, message",
    [
        ([["a"], ["b"]], [[0.1], [0.2]], "shape"),
        ([["a"]], [[math.nan]], "finite"),
        ([["a", "b"]], [[0.5]], "as many labels"),
        ([[1.0]], [[0.5]], "not that of an image classifier"),
        ([[b"\xff"]], [[0.5]], "not that of an image classifier"),
        ([["a"]], [["b"]], "as many labels"),
        ([["a"]], None, "shape"),
    ],
)
def test_predictions_of_grpc_are_checked(server, classes, scores, message):
    server.response = predictions(
        classes=tensor(classes), scores=tensor(scores) if scores else vast()
    )
    client = GrpcClient(server.grpc_address, "cait_tiny")
    with pytest.raises(ServingError, match=message) as error:
        client.classify(ENCODED[:1])
    assert error.value.code == "INTERNAL"
    server.response = predictions(classes=tensor(classes))
    with pytest.raises(ServingError, match="no outputs classes and scores"):
        client.classify(ENCODED[:1])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"address": "localhost"}, "HOST:PORT"),
        ({"address": "localhost:99999"}, "HOST:PORT"),
        ({"address": "localhost:0"}, "HOST:PORT"),
        ({"address": "ftp://localhost:8501"}, "HOST:PORT"),
        ({"address": "localhost:8501/path"}, "HOST:PORT"),
        ({"address": "http://localhost", "tls": True}, "needs https://"),
        ({"ca": "ca.pem"}, "Add --tls"),
        ({"ca": __file__, "tls": True}, "no certificates"),
        ({"ca": os.devnull, "tls": True}, "no certificates"),
        ({"headers": {"a b": "c"}}, "name of a header"),
        ({"headers": {"a": "b\r\nc: d"}}, "header 'a' must be printable"),
        ({"model": ""}, "must not be empty"),
        ({"label": ""}, "must not be empty"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": math.nan}, "timeout"),
        ({"attempts": 0}, "attempts"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        RestClient(**{"address": "localhost:1", "model": "cait", **options})


@pytest.mark.parametrize("name", ["batch_size", "concurrency"])
def test_sizes_are_positive(name):
    client = RestClient("localhost:1", "cait")
    with pytest.raises(ValueError, match=f"{name} must be at least 1"):
        list(classify_all(client, IMAGES, **{name: 0}))


def test_a_pipe_is_not_read(server, connect, tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    results = list(classify_all(connect(), [tmp_path / "pipe.jpg", IMAGES[0]]))
    assert "is not a file" in str(results[0])
    assert_same(results[1:], direct(server, 2, ENCODED[:1]))


@pytest.mark.skipif(
    "TF_SERVING_ADDRESS" not in os.environ,
    reason="needs a TF Serving: TF_SERVING_ADDRESS=host:grpc_port, "
    "TF_SERVING_MODEL=name of a model of this project",
)
def test_a_real_server():
    client = GrpcClient(
        os.environ["TF_SERVING_ADDRESS"],
        os.environ.get("TF_SERVING_MODEL", "cait_s24"),
    )
    for result in client.classify(ENCODED):
        scores = [score for _, score in result]
        assert scores == sorted(scores, reverse=True)
        assert 0 < sum(scores) <= 1.0001
