"""Fixtures that all tests share."""

import keras
import numpy as np
import pytest

import keras_cait
from tests.helpers.models import randomise
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
    return randomise(
        keras_cait.CaiT(
            24, 2, 2, patch_size=8, input_shape=(32, 32, 3), classes=5
        )
    )


@pytest.fixture
def images():
    """Two RGB images in 0...255, `(2, 32, 32, 3)` uint8."""
    noise = make_input((2, 32, 32, 3), seed=7)
    return np.clip(127 + 60 * noise, 0, 255).astype("uint8")
