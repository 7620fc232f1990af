"""Blocks that recompute their activations."""

import numpy as np
import pytest
import tensorflow as tf

from keras_cait.optimizers import freeze
from tests.helpers.models import randomise, small
from training.loop.rematerialization import rematerialize, rematerialize_mlp


def gradients(change, images, xla, trainable="all", **arguments):
    """Gradients of a changed model's weights, by path."""
    model = randomise(small(class_attention_depth=1, **arguments))
    freeze(model, trainable)
    change(model)
    for layer, variable in enumerate(model.non_trainable_variables):
        if variable.path.endswith("seed_generator_state"):
            variable.assign([layer, 3])
    batch = tf.repeat(tf.cast(images, tf.float32), 8, axis=0)

    @tf.function(jit_compile=xla)
    def compute(images):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(images, training=True) ** 2)
        return tape.gradient(loss, model.trainable_variables)

    first, second = (
        [gradient.numpy() for gradient in compute(batch)] for _ in range(2)
    )
    if model.drop_path_rate:  # other branches are dropped
        assert not all(map(np.array_equal, first, second))
    paths = [variable.path for variable in model.trainable_variables]
    return dict(zip(paths, second, strict=True))


@pytest.mark.parametrize(
    ("change", "xla", "arguments"),
    [
        (rematerialize, False, {"drop_path_rate": 0.4}),
        (rematerialize, True, {"drop_path_rate": 0.4}),
        (rematerialize, False, {}),
        (rematerialize, True, {"trainable": "attention"}),
        (rematerialize, False, {"trainable": "head", "drop_path_rate": 0.4}),
        (rematerialize, True, {"dtype": "mixed_bfloat16"}),
        (rematerialize_mlp, True, {"drop_path_rate": 0.4}),
    ],
)
def test_gradients_are_the_same(change, xla, arguments, images):
    """Also where branches are dropped: the second run drops the same ones."""
    expected, found = (
        gradients(change, images, xla, **arguments)
        for change in (lambda model: None, change)
    )
    largest = max(np.abs(gradient).max() for gradient in expected.values())
    for path, gradient in expected.items():
        # XLA fuses otherwise; another mask would move the gradient by its size.
        # Biases that softmax cancels have rounding noise, far below the others.
        scale = np.abs(gradient).max() + 1e-4 * largest
        np.testing.assert_allclose(
            found[path] / scale, gradient / scale, atol=1e-4, err_msg=path
        )
