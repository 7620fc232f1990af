"""Activation checkpointing: blocks whose inner activations are not kept."""

import keras


def rematerialize(model):
    """Makes every self-attention block compute its activations again.

    In the backward pass a block runs a second time instead of keeping what it
    computed, which needs less memory and more time. The second run drops the
    same branches as the first; `keras.RematScope` would draw new ones, and give
    wrong gradients.

    Args:
        model: `CaiT`. Its blocks are changed.
    """
    for layer in model.layers:
        if layer.name.startswith("self_attention_block_"):
            layer.call = _rematerialized(layer)


def _rematerialized(block):
    call = block.call
    generator = block.stochastic_depth.seed_generator

    def rematerialized_call(inputs, training=None):
        if not training:
            return call(inputs, training=training)
        # As many draws as the block makes, from where it would make them.
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
