"""Gradients, depth, mixed precision and stochastic depth."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_cait
from keras_cait.blocks import ClassAttentionBlock, SelfAttentionBlock
from tests.helpers.models import gradients


def cross_entropy(probabilities):
    return -ops.mean(ops.log(probabilities[:, 0]))


def test_every_weight_gets_a_gradient(small_model, images):
    """Except biases that add a constant to all scores of a query."""
    _, by_weights, _ = gradients(
        small_model, images.astype("float32"), cross_entropy
    )
    assert len(by_weights) == len(small_model.weights)
    cancelled = 0
    for path, gradient in by_weights.items():
        scale = np.abs(gradient).max()
        if path.endswith(("proj_logits/bias", "key/bias")):
            kernel = by_weights[path.replace("bias", "kernel")]
            assert scale < 1e-4 * np.abs(kernel).max(), path
            cancelled += 1
            continue
        if path.endswith("qkv/bias"):
            query, key, value = np.split(gradient, 3)
            assert np.abs(key).max() < 1e-4 * scale, path
            gradient = np.concatenate([query, value])
            cancelled += 1
        assert np.isfinite(gradient).all(), path
        assert (gradient != 0).all(), path
    assert cancelled == 2 * small_model.depth + 2


class Stack(keras.layers.Layer):
    """A sequence of equal blocks as one layer.

    One block is traced and scanned over the weights of all. Compiling 36 blocks
    and their gradients takes minutes.
    """

    def __init__(self, block, depth):
        super().__init__(autocast=False)
        self.config = block.get_config()
        self.depth = depth

    def build(self, input_shape):
        blocks = [
            SelfAttentionBlock.from_config(self.config)
            for _ in range(self.depth)
        ]
        for block in blocks:
            block.build(input_shape)
        self.stacks = []
        for same in zip(*(block.weights for block in blocks), strict=True):
            values = np.stack([ops.convert_to_numpy(w) for w in same])
            name = same[0].path.replace("/", "_")
            stack = self.add_weight(values.shape, autocast=False, name=name)
            stack.assign(values)
            self.stacks.append(stack)
        self.step = lambda x, weights: (
            blocks[0].stateless_call(weights, [], x)[0],
            None,
        )

    def call(self, inputs):
        weights = [ops.convert_to_tensor(stack) for stack in self.stacks]
        return ops.scan(self.step, inputs, weights)[0]

    def compute_output_shape(self, input_shape):
        return input_shape


@pytest.mark.parametrize(
    "policy",
    [
        pytest.param("float32", marks=pytest.mark.large),
        "mixed_bfloat16",
        "mixed_float16",
    ],
)
def test_36_blocks_train_without_overflow(policy):
    """20 steps from LayerScale 1e-6: every block learns, all is finite."""
    shallow = keras_cait.CaiT(
        16,
        1,
        2,
        patch_size=8,
        init_values=1e-6,
        input_shape=(16, 16, 3),
        classes=4,
        dtype=policy,
    )
    model = keras.models.clone_model(
        shallow,
        clone_function=lambda layer: (
            Stack(layer, 36) if isinstance(layer, SelfAttentionBlock) else layer
        ),
    )
    model.dtype_policy = shallow.dtype_policy  # by which compile() scales
    model.compile(
        keras.optimizers.Lion(1e-3),
        "sparse_categorical_crossentropy",
        jit_compile=keras.backend.backend() == "jax",
    )
    scaled = isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled == (policy == "mixed_float16")
    images = np.random.uniform(0, 255, (8, 16, 16, 3))
    labels = np.arange(8) % 4
    losses = []
    for _ in range(20):
        model.reset_metrics()
        losses.append(model.train_on_batch(images, labels))
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    for weight in model.weights:
        assert np.isfinite(ops.convert_to_numpy(weight)).all(), weight.path
    gammas = [
        w for w in model.weights if w.path.endswith("layer_scale_2_gamma")
    ]
    (stack,) = [ops.convert_to_numpy(g) for g in gammas if g.shape[0] == 36]
    assert (np.abs(stack).mean(axis=1) > 1e-3).all()


def test_stochastic_depth_drops_whole_branches_of_single_images():
    """Each image keeps both branches, one or none. Kept ones are scaled."""
    rate, images = 0.25, 4000
    block = SelfAttentionBlock(1, init_values=1.0, drop_path_rate=rate)
    block.build((None, 2, 2))
    # The branches add exactly 1 and 10 to every channel of every token.
    for weight in block.weights:
        if "seed" not in weight.path and "gamma" not in weight.path:
            weight.assign(np.zeros(weight.shape))
    block.attention.proj.bias.assign(np.full(2, 1.0))
    block.mlp.fc2.bias.assign(np.full(2, 10.0))
    x = np.zeros((images, 2, 2), "float32")

    np.testing.assert_array_equal(block(x, training=False), x + 11)
    kept = ops.convert_to_numpy(block(x, training=True)) * (1 - rate)
    assert (kept == kept[:, :1, :1]).all()
    outcomes, counts = np.unique(kept[:, 0, 0].round(4), return_counts=True)
    np.testing.assert_allclose(outcomes, [0, 1, 10, 11], atol=1e-3)
    expected = images * np.array(
        [rate**2, rate * (1 - rate), rate * (1 - rate), (1 - rate) ** 2]
    )
    deviation = np.sqrt(expected * (1 - expected / images))
    assert (np.abs(counts - expected) < 4 * deviation).all()


def test_stochastic_depth_is_uniform_and_not_in_class_attention():
    model = keras_cait.CaiT(
        24, 4, 2, patch_size=8, input_shape=(16, 16, 3), drop_path_rate=0.3
    )
    blocks = model.self_attention_blocks
    assert [block.stochastic_depth.rate for block in blocks] == [0.3] * 4
    dropouts = [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.Dropout)
    ]
    assert dropouts == [block.stochastic_depth for block in blocks]

    token = np.random.normal(size=(64, 1, 8)).astype("float32")
    patches = np.random.normal(size=(64, 4, 8)).astype("float32")
    block = ClassAttentionBlock(2, init_values=1.0)
    np.testing.assert_array_equal(
        ops.convert_to_numpy(block(token, patches, training=True)),
        ops.convert_to_numpy(block(token, patches, training=False)),
    )


def test_stochastic_depth_repeats_with_a_seed():
    def draws(seed):
        keras.utils.set_random_seed(seed)
        block = SelfAttentionBlock(1, init_values=1.0, drop_path_rate=0.5)
        x = np.random.normal(size=(64, 2, 2)).astype("float32")
        return [ops.convert_to_numpy(block(x, training=True)) for _ in range(2)]

    first, second = draws(1)
    again, _ = draws(1)
    np.testing.assert_array_equal(first, again)
    assert (first != second).any()
    assert (first != draws(2)[0]).any()
