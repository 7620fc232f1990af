"""MLServer runs the files of docs/serving.md."""

import json
import re
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from export.inference_graph import InferenceModel
from export.litert import convert
from export.serving.model_folder import write_version
from tests.helpers.environments import make_environment

DOCUMENT = Path(__file__).parents[2] / "docs/serving.md"
LABELS = [f"class {i}" for i in range(5)]


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def answer(url, body=None):
    """The response of a server that may still be starting."""
    headers = {"Content-Type": "application/json"}
    data = body and json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        return response.read()


def export_pixels(model, folder):
    write_version(
        model, LABELS, folder / "digits_pixels", signatures=["pixels"]
    )


def export_litert(model, folder):
    (folder / "digits.tflite").write_bytes(convert(InferenceModel(model)))


@pytest.mark.large
@pytest.mark.parametrize(
    "implementation, package, export, datatype",
    [
        ("pixels.Pixels", "tensorflow-cpu", export_pixels, "UINT8"),
        ("litert.LiteRT", "ai-edge-litert", export_litert, "FP32"),
    ],
)
def test_mlserver_serves(
    implementation, package, export, datatype, small_model, images, tmp_path
):
    programs = make_environment(tmp_path / "venv", ["mlserver>=1.7", package])

    folder = tmp_path / "served"
    module, name = implementation.split(".")
    blocks = re.findall(
        r"```(?:python|json)\n(.*?)```", DOCUMENT.read_text(), re.S
    )
    (program,) = (block for block in blocks if f"class {name}(" in block)
    (settings,) = (block for block in blocks if implementation in block)
    folder.mkdir()
    (folder / f"{module}.py").write_text(program)
    (folder / "model-settings.json").write_text(settings)
    kinds = ("http", "grpc", "metrics")
    ports = {f"{kind}_port": free_port() for kind in kinds}
    (folder / "settings.json").write_text(
        json.dumps({"host": "127.0.0.1", "parallel_workers": 0, **ports})
    )
    export(small_model, folder)
    model = f"http://127.0.0.1:{ports['http_port']}/v2/models/digits"
    server = subprocess.Popen([programs / "mlserver", "start", folder])
    try:
        for _ in range(120):
            try:
                answer(f"{model}/ready")
                break
            except OSError:
                assert server.poll() is None, "MLServer has ended"
                time.sleep(1)
        given = {
            "name": "images",
            "datatype": datatype,
            "shape": images.shape,
            "data": images.ravel().tolist(),
        }
        response = json.loads(answer(f"{model}/infer", {"inputs": [given]}))
    finally:
        server.terminate()
        server.wait()
    (found,) = (
        np.reshape(output["data"], output["shape"])
        for output in response["outputs"]
        if output["name"] == "probabilities"
    )
    expected = small_model.predict(images, verbose=0)
    np.testing.assert_allclose(found, expected, atol=1e-5)
