"""Rematerialization: activations are recomputed instead of kept."""

from collections.abc import Callable
from functools import partial

import keras
import tensorflow as tf

from keras_cait.blocks import SelfAttentionBlock
from keras_cait.models import CaiT

# Calls stay calls: all blocks share one graph, and the second run waits for the
# gradient of its outputs. Inlined, each block would have a copy of the graph,
# and nothing would order the runs.
function = partial(
    tf.function,
    autograph=False,
    experimental_attributes={"_noinline": True},
)


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

    The backward pass runs a block again instead of keeping its activations.
    All blocks run one function, which is traced once, with their own weights.

    Args:
        model: the model, whose blocks are changed in place.
    """
    blocks = model.self_attention_blocks
    run = _rematerialized(blocks[0])
    for block in blocks:
        block.call = _call(block, run)


def _rematerialized(block: SelfAttentionBlock) -> Callable:
    """A training run of a block, as a function of inputs and variables.

    Args:
        block: whose code runs; its own variables are not read.

    Returns:
        Function of `(inputs, *values)` to the outputs. Both runs drop the same
        branches, as the seeds are among the values. With `keras.RematScope` the
        second would draw new ones, and the gradients would be wrong.
    """
    call, count = block.call, len(block.trainable_variables)
    variables = _variables(block)

    def run(inputs, values):
        with keras.StatelessScope(zip(variables, values, strict=True)):
            return call(inputs, training=True)

    forward = function(run)

    @function
    def backward(inputs, values, upstream):
        # XLA would find that it did the same before, and keep it: the inputs
        # must depend on what comes from behind.
        first = tf.reshape(upstream, [-1])[0]
        inputs += tf.where(first == first, tf.zeros_like(first), first)
        sources = (inputs, values[:count])
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(sources)
            outputs = run(inputs, values)
        return tape.gradient(outputs, sources, upstream)

    @tf.custom_gradient
    def rematerialized(inputs, *values):
        def gradient(upstream):
            of_inputs, of_values = backward(inputs, values, upstream)
            return of_inputs, *of_values, *[None] * (len(values) - count)

        return forward(inputs, values), gradient

    return rematerialized


def _variables(block: SelfAttentionBlock) -> list[keras.Variable]:
    return [*block.trainable_variables, *block.non_trainable_variables]


def _call(block: SelfAttentionBlock, run: Callable) -> Callable:
    """The `call` of a block that runs `_rematerialized` in training."""
    call = block.call

    def rematerialized_call(inputs, training=None):
        if not training:
            return call(inputs, training=training)
        values = map(keras.ops.convert_to_tensor, _variables(block))
        outputs = run(inputs, *values)
        if block.drop_path_rate:  # the run used the draws of two branches
            for _ in range(2):
                block.stochastic_depth.seed_generator.next()
        return outputs

    return rematerialized_call
