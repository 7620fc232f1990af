"""Options of the test run, and the names that docstring examples may use."""

import gc
import os
import tempfile

# The user's settings, downloads, datasets, cluster and terminal play no part.
# Workers inherit the folder of the process that makes and removes it.
if "PYTEST_XDIST_WORKER" not in os.environ:
    HOME = tempfile.TemporaryDirectory(prefix="keras-cait-tests-")
    for variable in ("HF_HOME", "KERAS_HOME", "TFDS_DATA_DIR"):
        os.environ[variable] = os.path.join(HOME.name, variable.lower())
    for variable in ("TF_CONFIG", "FORCE_COLOR"):
        os.environ.pop(variable, None)
    os.environ["COLUMNS"] = "80"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Of a small model on JAX, compiling takes most of the time.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import keras
import numpy as np
import pytest

import keras_cait
from tests.helpers.models import without_values


def pytest_addoption(parser):
    parser.addoption(
        "--large",
        action="store_true",
        help="also run the tests that need minutes or more than 4 GB",
    )


def pytest_configure(config):
    config.addinivalue_line(
        "markers", "large: needs minutes or more than 4 GB; runs with --large"
    )


# TensorFlow ends the process at the first 16-bit product where oneDNN is held
# below the instructions of the processor.
NO_FLOAT16 = pytest.mark.skipif(
    os.environ.get("ONEDNN_MAX_CPU_ISA") in ("SSE41", "AVX", "AVX2"),
    reason="TensorFlow has no 16-bit products with this ONEDNN_MAX_CPU_ISA",
)


def pytest_collection_modifyitems(config, items):
    for item in items:
        if "float16" in item.name:
            item.add_marker(NO_FLOAT16)
    if not config.getoption("--large"):
        large = [item for item in items if item.get_closest_marker("large")]
        items[:] = [item for item in items if item not in large]
        config.hook.pytest_deselected(items=large)


def pytest_collection_finish():
    """Keeps garbage collections from scanning TensorFlow's many objects."""
    gc.freeze()


@pytest.fixture(autouse=True)
def docstrings(request, doctest_namespace, tmp_path, monkeypatch):
    """Examples know the library's names and write to a folder of their own."""
    doctest_namespace.update(vars(keras_cait), np=np, keras=keras)
    if isinstance(request.node, pytest.DoctestItem):
        monkeypatch.chdir(tmp_path)
    if request.node.name.startswith("keras_cait.models.CaiT_"):
        with without_values():
            yield
    else:
        yield
