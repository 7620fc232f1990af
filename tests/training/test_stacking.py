"""A stack computes what its blocks do, and learns as they do."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_cait.baselines import ViT
from keras_cait.optimizers import decays
from tests.helpers.models import randomise
from training.loop.stacking import stacked

CHOICES = [
    {"class_token_depth": 2, "residual_scaling": "fixup", "pre_norm": False},
    {
        "class_attention_depth": 1,
        "residual_scaling": "layer_scale",
        "init_values": 0.1,
        "talking_heads": True,
    },
]


@pytest.mark.parametrize(
    ("choice", "xla"),
    [
        (CHOICES[0], False),
        (CHOICES[1], False),
        pytest.param(CHOICES[0], True, marks=pytest.mark.large),
        (CHOICES[1], True),
    ],
)
def test_a_stack_is_its_blocks(choice, xla, images):
    model = randomise(
        ViT(8, 3, 2, patch_size=8, input_shape=(32, 32, 3), classes=4, **choice)
    )
    stack = stacked(model)
    assert stack.count_params() == model.count_params()
    found = []
    for one in (model, stack):

        @tf.function(jit_compile=xla)
        def probabilities_and_gradients(one=one):
            with tf.GradientTape() as tape:
                probabilities = one(images, training=True)
                loss = -tf.reduce_mean(tf.math.log(probabilities[:, 0]))
            variables = [v.value for v in one.trainable_variables]
            return probabilities, tape.gradient(loss, variables)

        probabilities, gradients = probabilities_and_gradients()
        squares = {True: 0.0, False: 0.0}
        for variable, gradient in zip(
            one.trainable_variables, gradients, strict=True
        ):
            squares[decays(variable)] += float(tf.reduce_sum(gradient**2))
        found.append((probabilities, [*squares.values()]))
    for ours, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4)
    # One layer holds all blocks between two changes of the tokens.
    kinds = [type(layer).__name__ for layer in stack.layers]
    assert kinds.count("Stack") == (2 if "class_token_depth" in choice else 1)
    assert "ResidualBlock" not in kinds


def test_dropped_branches_are_not_stacked():
    model = ViT(8, 2, 2, input_shape=(32, 32, 3), drop_path_rate=0.1)
    assert stacked(model) is model
    assert isinstance(stacked(model), keras.Model)
