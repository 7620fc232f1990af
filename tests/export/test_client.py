"""The client against a server of loopback around an exported model."""

import json
import os

import pytest

import export.serving.client
import keras_cait
from export.__main__ import main
from export.serving.client import (
    GrpcClient,
    RestClient,
    ServingError,
    classify_all,
)
from export.serving.model_folder import write_version
from tests.helpers.commands import exit_status
from tests.helpers.models import randomise
from tests.helpers.reference import REFERENCE
from tests.helpers.serving import Server

LABELS = [f"class {i}" for i in range(5)]
IMAGES = sorted((REFERENCE / "preprocess").rglob("*.png"))
ENCODED = [file.read_bytes() for file in IMAGES]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Two versions with other weights, `stable` and `canary`."""
    folder = tmp_path_factory.mktemp("models") / "cait_tiny"
    for seed in (0, 1):
        model = randomise(
            keras_cait.CaiT(
                24, 2, 2, patch_size=8, input_shape=(32, 32, 3), classes=5
            ),
            seed,
        )
        write_version(model, LABELS, folder, batch_sizes=(1,))
    with Server(folder, {"stable": 1, "canary": 2}) as server:
        yield server


@pytest.fixture
def server(served, monkeypatch):
    served.requests = served.unavailable = served.cut = 0
    served.delay = 0.0
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
    """The SavedModel's own answer."""
    import tensorflow as tf

    signature = server.versions[version].signatures["serving_default"]
    answer = signature(image_bytes=tf.constant(encoded))
    return [
        [
            (name.decode(), float(score))
            for name, score in zip(*row, strict=True)
        ]
        for row in zip(
            answer["classes"].numpy(), answer["scores"].numpy(), strict=True
        )
    ]


def assert_same(found, expected):
    assert len(found) == len(expected)
    for row, expected_row in zip(found, expected, strict=True):
        assert [name for name, _ in row] == [name for name, _ in expected_row]
        for (_, score), (_, other) in zip(row, expected_row, strict=True):
            assert score == pytest.approx(other, rel=1e-5)


@pytest.mark.parametrize("count", [1, 3, 6])
def test_answers_are_the_model_s(server, connect, count):
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


def test_a_busy_server_is_asked_again(server, connect):
    server.unavailable = 2
    assert_same(connect().classify(ENCODED), direct(server, 2, ENCODED))
    assert server.requests == 3


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
        (
            {},
            [ENCODED[0], b"no"],
            "INVALID_ARGUMENT",
            r"image_bytes at\] \[1\]",
        ),
    ],
)
def test_errors_are_not_tried_again(
    server, connect, arguments, encoded, code, message
):
    with pytest.raises(ServingError, match=message) as error:
        connect(**arguments).classify(encoded)
    assert error.value.code == code
    assert server.requests <= 1


def test_a_slow_server(server, connect):
    server.delay = 0.5
    with pytest.raises(ServingError) as error:
        connect(timeout=0.1).classify(ENCODED)
    assert error.value.code == "DEADLINE_EXCEEDED"


def test_a_cut_connection_is_tried_again(server):
    server.cut = 1
    client = RestClient(server.rest_address, "cait_tiny")
    assert_same(client.classify(ENCODED), direct(server, 2, ENCODED))


def test_no_server(connect):
    client = connect(attempts=2)
    client = type(client)("127.0.0.1:1", "cait_tiny", attempts=2)
    with pytest.raises(ServingError, match=r"127\.0\.0\.1:1") as error:
        client.classify(ENCODED)
    assert error.value.code == "UNAVAILABLE"


def test_too_large_a_message(server):
    client = GrpcClient(server.grpc_address, "cait_tiny")
    with pytest.raises(ServingError) as error:
        client.classify([bytes(5 << 20)])
    assert error.value.code == "RESOURCE_EXHAUSTED"


@pytest.mark.parametrize("concurrency", [1, 4])
def test_many_pictures_of_which_some_are_broken(
    server, connect, tmp_path, concurrency
):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    missing = tmp_path / "missing.jpg"
    paths = [*IMAGES[:3], broken, *IMAGES[3:], missing]
    answers = list(classify_all(connect(), paths, 2, concurrency))
    assert answers[3].code == "INVALID_ARGUMENT"
    assert isinstance(answers[-1], FileNotFoundError)
    assert_same(answers[:3] + answers[4:-1], direct(server, 2, ENCODED))


@pytest.mark.parametrize("protocol", ["grpc", "rest"])
def test_command(server, protocol, tmp_path, capsys):
    address = getattr(server, f"{protocol}_address")
    folder = str(IMAGES[0].parent)
    options = ["--server", address, "--served-model", "cait_tiny"]
    options += ["--protocol", protocol, "--version-label", "stable"]
    assert exit_status(main, "classify", folder, *options, "--json") == 0
    printed = capsys.readouterr()
    assert "6 of 6" in printed.err
    expected = direct(server, 1, ENCODED)
    lines = [json.loads(line) for line in printed.out.splitlines()]
    assert [line["image"] for line in lines] == list(map(str, IMAGES))
    assert_same([line["classes"] for line in lines], expected)

    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    assert exit_status(main, "classify", IMAGES[0], tmp_path, *options) == 1
    printed = capsys.readouterr().out
    assert expected[0][0][0] in printed
    assert "INVALID_ARGUMENT" in printed


def test_command_without_an_image(server, tmp_path, capsys):
    options = ["--server", server.grpc_address, "--served-model", "cait_tiny"]
    assert exit_status(main, "classify", tmp_path, *options) == 1
    assert "No images" in capsys.readouterr().err


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
    for answer in client.classify(ENCODED):
        scores = [score for _, score in answer]
        assert scores == sorted(scores, reverse=True)
        assert 0 < sum(scores) <= 1.0001
