"""Rematerialization: activations that are computed again, not kept."""

from collections.abc import Callable

import keras

from keras_cait.blocks import SelfAttentionBlock
from keras_cait.models import CaiT


def rematerialize_mlp(model: CaiT) -> None:
    """Makes blocks recompute the GELU and what is computed from it.

    The backward pass then keeps one array of the MLP's hidden width instead of
    three, a fifth less memory, and takes as long.

    Args:
        model: the model, whose layers are changed in place.
    """
    for block in model.self_attention_blocks:
        block.mlp.contract = keras.remat(block.mlp.contract)


def rematerialize(model: CaiT) -> None:
    """Makes every self-attention block recompute its activations.

    The backward pass runs a block again instead of keeping its activations,
    which takes less memory and more time. The second run drops the same
    branches as the first; with `keras.RematScope` it would draw new ones, and
    the gradients would be wrong.

    Args:
        model: the model, whose blocks are changed in place.
    """
    for block in model.self_attention_blocks:
        block.call = _rematerialized(block)


def _rematerialized(block: SelfAttentionBlock) -> Callable:
    call = block.call
    generator = block.stochastic_depth.seed_generator

    def rematerialized_call(inputs, training=None):
        if not training:
            return call(inputs, training=training)
        # The same draws for both runs, as many as the block makes.
        seeds = [generator.next() for _ in range(2)]

        def body(inputs):
            draws = iter(seeds)
            generator.next = lambda ordered=True: next(draws)
            try:
                return call(inputs, training=True)
            finally:
                del generator.next

        return keras.remat(body)(inputs)

    return rematerialized_call
