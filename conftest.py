"""The names that the examples of docstrings may use."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pytest

import keras_cait


@pytest.fixture(autouse=True)
def names_for_docstrings(doctest_namespace):
    doctest_namespace.update(vars(keras_cait), np=np, keras=keras)
