"""Stacks of equal blocks: one layer, traced and compiled once."""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_cait.baselines import ResidualBlock


class Stack(keras.layers.Layer):
    """Equal blocks in sequence, as a loop over their weights.

    Tracing and compiling 36 blocks and their gradients takes minutes; one block
    takes seconds.

    Args:
        blocks: built `ResidualBlock` layers that differ only in their weights,
            without stochastic depth. The stack starts with copies of their
            weights.

    Call arguments:
        inputs: float tensor `(batch, tokens, embed_dim)`.

    Returns:
        Tensor of the same shape.
    """

    def __init__(self, blocks: Sequence[ResidualBlock], **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.count = len(blocks)
        self.config = blocks[0].get_config()
        self.first = {}  # by path within a block
        for same in zip(*(block.weights for block in blocks), strict=True):
            path = same[0].path.removeprefix(f"{blocks[0].name}/")
            values = [ops.convert_to_numpy(weight) for weight in same]
            self.first[path] = np.stack(values)

    def build(self, input_shape):
        block = ResidualBlock.from_config(self.config)
        block.build(input_shape)
        self.paths, self.stacks = list(self.first), []
        for path, values in self.first.items():
            # The optimizer decides by the last part of the name what decays.
            stack = self.add_weight(
                values.shape, autocast=False, name=path.split("/")[-1]
            )
            stack.assign(values)
            self.stacks.append(stack)
            # Checkpoints ignore weights in lists.
            setattr(self, path.replace("/", "_"), stack)
        del self.first
        # In a function: the weights of this one block are not the stack's.
        self.call_block = lambda x, weights: block.stateless_call(
            weights, [], x
        )[0]

    def call(self, inputs):
        # Not slices: the gradient of each is as large as the whole stack.
        stacks = [
            tf.TensorArray(stack.dtype, self.count).unstack(
                ops.convert_to_tensor(stack)
            )
            for stack in self.stacks
        ]

        def step(i, x):
            return i + 1, self.call_block(
                x, [stack.read(i) for stack in stacks]
            )

        _, outputs = tf.while_loop(
            lambda i, x: i < self.count,
            step,
            (0, inputs),
            parallel_iterations=1,
            maximum_iterations=self.count,
        )
        return outputs

    def compute_output_shape(self, input_shape):
        return input_shape


def stacked(model: keras.Model) -> keras.Model:
    """A model that computes the same, with its equal blocks as stacks.

    Args:
        model: `ViT`. With stochastic depth, whose blocks draw separately, it is
            returned as it is.

    Returns:
        Model with all other layers of the given one. A stack has the name of
        its first block; blocks before and after the class token's entry are two
        stacks.
    """
    if model.drop_path_rate:
        return model
    blocks = model.self_attention_blocks
    entry = model.class_token_depth or 0
    stacks = {
        run[0]: Stack(run, name=run[0].name)
        for run in (blocks[:entry], blocks[entry:])
        if run
    }

    def replaced(layer: keras.layers.Layer) -> keras.layers.Layer:
        if layer in stacks:
            return stacks[layer]
        return keras.layers.Identity() if layer in blocks else layer

    return keras.models.clone_model(model, clone_function=replaced)
