"""Fixtures of the tests of exports."""

import random

import numpy as np
import pytest


@pytest.fixture(autouse=True)
def deterministic():
    """As for all tests, but TensorFlow keeps its seed.

    With a new one, it optimizes every served graph again, which takes seconds.
    """
    random.seed(0)
    np.random.seed(0)
