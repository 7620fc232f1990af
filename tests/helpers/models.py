"""Models with weights of order 1, and their gradients."""

from contextlib import contextmanager

import keras
import numpy as np

import keras_cait
from keras_cait.conversion import from_reference, to_reference
from tests.helpers.oracle_weights import fill

LABELS = [f"class {i}" for i in range(5)]  # of the classes of `small`


def randomise(model, seed=0):
    """Fills a model with weights of order 1.

    A fresh CaiT is blind: with gammas of 1e-5 attention could return zeros
    and no comparison of outputs would notice.
    """
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


def small(embed_dim=24, depth=2, num_heads=2, size=32, **arguments):
    """A CaiT as the fixture `small_model`, but with its random start."""
    arguments = {
        "patch_size": 8,
        "classes": 5,
        "input_shape": (size, size, 3),
        **arguments,
    }
    return keras_cait.CaiT(embed_dim, depth, num_heads, **arguments)
