"""Fixtures that all tests share."""

import io
import os
import subprocess
import tarfile
from pathlib import Path

import keras
import numpy as np
import pytest
from filelock import FileLock

from tests.helpers.models import randomise, small
from tests.helpers.oracle_weights import make_input


@pytest.fixture(autouse=True)
def deterministic():
    """Every test starts from the same seed and leaves no global state."""
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture
def small_model():
    """A CaiT of a few thousand weights for 32 x 32 RGB, weights of order 1."""
    return randomise(small())


@pytest.fixture
def images():
    """Two RGB images in 0...255, `(2, 32, 32, 3)` uint8."""
    noise = make_input((2, 32, 32, 3), seed=7)
    return np.clip(127 + 60 * noise, 0, 255).astype("uint8")


@pytest.fixture(scope="session")
def browser():
    """The folder in which npm installs Chromium, without its files in Git."""
    folder = Path(__file__).parent / "browser"
    # Two processes test, with a home that they share.
    with FileLock(os.environ["KERAS_HOME"] + ".browser.lock"):
        if not (folder / "node_modules").exists():
            subprocess.run(["npm", "ci"], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="module")
def vulkan(browser, tmp_path_factory):
    """Chromium's software GPU, for LiteRT's engine in processes of its own."""
    packed = browser / "node_modules/@sparticuz/chromium/bin/swiftshader.tar.br"
    unpack = (
        "const file = require('fs').readFileSync(process.argv[1]);"
        "process.stdout.write(require('zlib').brotliDecompressSync(file))"
    )
    tar = subprocess.run(
        ["node", "-e", unpack, packed], capture_output=True, check=True
    )
    folder = tmp_path_factory.mktemp("vulkan")
    with tarfile.open(fileobj=io.BytesIO(tar.stdout)) as file:
        file.extractall(folder, filter="data")
    with pytest.MonkeyPatch.context() as patch:
        driver = folder / "vk_swiftshader_icd.json"
        patch.setenv("VK_ICD_FILENAMES", str(driver))
        patch.setenv("LD_LIBRARY_PATH", str(folder))  # libvulkan.so.1
        yield
