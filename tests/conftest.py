"""What the tests share: reference numbers and models that are not blind."""

import json
import os
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pytest

import keras_cait
from tests.oracle_weights import fill, make_input

REFERENCE = Path(__file__).parent / "reference"


@pytest.fixture(autouse=True)
def deterministic():
    """Every test starts from the same seed and leaves no global state."""
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")


def randomise(model, seed=0):
    """Fills a model with weights of order 1.

    A fresh CaiT is blind: with gammas of 1e-5 attention could return zeros
    and no comparison of outputs would notice.
    """
    from keras_cait.conversion import from_reference, to_reference

    tensors = to_reference(model.weights)
    from_reference(
        model.weights,
        {
            name: fill(name, array.shape, seed)
            for name, array in tensors.items()
        },
    )
    return model


@contextmanager
def without_values():
    """Models built in here never get values: even M48 takes a second."""
    with keras.StatelessScope(initialize_variables=False):
        yield
    # Keras would make up for it at the next occasion, with gigabytes.
    keras.backend.clear_session(free_memory=False)


@pytest.fixture
def small_model():
    """A CaiT of a few thousand weights for 32 x 32 RGB, weights of order 1."""
    return randomise(
        keras_cait.CaiT(
            24, 2, 2, patch_size=8, input_shape=(32, 32, 3), classes=5
        )
    )


@pytest.fixture
def pictures():
    """Two RGB pictures in 0...255, `(2, 32, 32, 3)` uint8."""
    noise = make_input((2, 32, 32, 3), seed=7)
    return np.clip(127 + 60 * noise, 0, 255).astype("uint8")


def reference(name):
    """The recorded arrays of a reference case, and the description of it."""
    info = json.loads((REFERENCE / f"{name}.json").read_text())
    return info, dict(np.load(REFERENCE / f"{name}.npz"))


def gradients(model, inputs, loss):
    """`loss(model(inputs))` in training, and its gradients.

    Returns:
        the loss; `{path: array}` by the trainable weights; arrays by the
        inputs.
    """
    variables = model.trainable_variables
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        inputs = tf.nest.map_structure(tf.convert_to_tensor, inputs)
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            value = loss(model(inputs, training=True))
        by_weights, by_inputs = tape.gradient(
            value,
            ([v.value for v in variables], inputs),
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
    else:
        import jax

        state = [v.value for v in model.non_trainable_variables]

        def forward(weights, inputs):
            return loss(
                model.stateless_call(weights, state, inputs, training=True)[0]
            )

        differentiate = jax.jit(jax.value_and_grad(forward, argnums=(0, 1)))
        value, (by_weights, by_inputs) = differentiate(
            [v.value for v in variables], inputs
        )
    arrays = keras.tree.map_structure(np.asarray, (by_weights, by_inputs))
    paths = [v.path for v in variables]
    return float(value), dict(zip(paths, arrays[0], strict=True)), arrays[1]
