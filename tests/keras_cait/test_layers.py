"""Every layer and block: configuration, shapes, dtypes, gradients, files."""

import json

import keras
import numpy as np
import pytest
from keras import ops

from keras_cait.blocks import ClassAttentionBlock, SelfAttentionBlock
from keras_cait.layers import (
    MLP,
    ClassAttention,
    ClassToken,
    HeadMixing,
    LayerScale,
    PatchEmbedding,
    PositionEmbedding,
    TalkingHeadsAttention,
)
from tests.helpers.models import gradients

PATCHES, TOKEN = (2, 6, 8), (2, 1, 8)
BLOCK = {"num_heads": 2, "mlp_ratio": 3.0, "init_values": 0.5}
BLOCK_WEIGHTS = {
    "norm1/gamma": (8,),
    "norm1/beta": (8,),
    "layer_scale_1/gamma": (8,),
    "norm2/gamma": (8,),
    "norm2/beta": (8,),
    "mlp/fc1/kernel": (8, 24),
    "mlp/fc1/bias": (24,),
    "mlp/fc2/kernel": (24, 8),
    "mlp/fc2/bias": (8,),
    "layer_scale_2/gamma": (8,),
}
TALKING_HEADS_WEIGHTS = {
    "qkv/kernel": (8, 24),
    "qkv/bias": (24,),
    "proj_logits/kernel": (2, 2),
    "proj_logits/bias": (2,),
    "proj_weights/kernel": (2, 2),
    "proj_weights/bias": (2,),
    "proj/kernel": (8, 8),
    "proj/bias": (8,),
}
CLASS_ATTENTION_WEIGHTS = {
    f"{name}/{weight}": shape
    for name in ("query", "key", "value", "proj")
    for weight, shape in (("kernel", (8, 8)), ("bias", (8,)))
}

# layer, arguments, input shapes, shapes of outputs and scores, weights
LAYERS = [
    (
        PatchEmbedding,
        {"embed_dim": 8, "patch_size": 4},
        [(2, 8, 12, 3)],
        [(2, 2, 3, 8)],
        {"proj/kernel": (4, 4, 3, 8), "proj/bias": (8,)},
    ),
    (
        PositionEmbedding,
        {"grid_size": (2, 2)},
        [(2, 2, 3, 8)],
        [PATCHES],
        {"position_embedding": (1, 4, 8)},
    ),
    (ClassToken, {}, [PATCHES], [TOKEN], {"class_token": (1, 1, 8)}),
    (LayerScale, {"init_values": 0.5}, [PATCHES], [PATCHES], {"gamma": (8,)}),
    (
        MLP,
        {"mlp_ratio": 3.0},
        [PATCHES],
        [PATCHES],
        {k[4:]: v for k, v in BLOCK_WEIGHTS.items() if k.startswith("mlp/")},
    ),
    (
        HeadMixing,
        {},
        [(2, 3, 6, 6)],
        [(2, 3, 6, 6)],
        {"kernel": (2, 2), "bias": (2,)},
    ),
    (
        TalkingHeadsAttention,
        {"num_heads": 2},
        [PATCHES],
        [PATCHES, (2, 2, 6, 6)],
        TALKING_HEADS_WEIGHTS,
    ),
    (
        ClassAttention,
        {"num_heads": 2},
        [TOKEN, PATCHES],
        [TOKEN, (2, 2, 1, 7)],
        CLASS_ATTENTION_WEIGHTS,
    ),
    (
        SelfAttentionBlock,
        {**BLOCK, "drop_path_rate": 0.0},
        [PATCHES],
        [PATCHES, (2, 2, 6, 6)],
        BLOCK_WEIGHTS
        | {f"attention/{k}": v for k, v in TALKING_HEADS_WEIGHTS.items()},
    ),
    (
        ClassAttentionBlock,
        BLOCK,
        [TOKEN, PATCHES],
        [TOKEN, (2, 2, 1, 7)],
        BLOCK_WEIGHTS
        | {f"attention/{k}": v for k, v in CLASS_ATTENTION_WEIGHTS.items()},
    ),
]
every_layer = pytest.mark.parametrize(
    "layer, arguments, inputs, outputs, weights",
    LAYERS,
    ids=[case[0].__name__ for case in LAYERS],
)
every_policy = pytest.mark.parametrize(
    "policy", ["float32", "mixed_bfloat16", "mixed_float16"]
)

# Layers whose output joins the residual stream, in the dtype of the weights.
STREAM = (
    PositionEmbedding,
    ClassToken,
    LayerScale,
    SelfAttentionBlock,
    ClassAttentionBlock,
)
# A constant added to all scores of a query cancels in the softmax.
CANCEL = ("proj_logits/bias", "key/bias")


def arrays(shapes):
    return [np.random.normal(size=shape).astype("float32") for shape in shapes]


def model_of(layer, shapes):
    """A model of one layer, with random weights of order 1."""
    inputs = [keras.Input(shape[1:], batch_size=shape[0]) for shape in shapes]
    model = keras.Model(inputs, layer(*inputs))
    for weight in model.weights:
        weight.assign(np.random.normal(size=weight.shape))
    return model


def relative_path(layer, weight):
    return weight.path.removeprefix(f"{layer.name}/")


@every_layer
def test_config_round_trip(layer, arguments, inputs, outputs, weights):
    original = layer(**arguments, name="mine", dtype="mixed_bfloat16")
    config = json.loads(json.dumps(original.get_config()))
    copy = layer.from_config(config)
    assert copy.get_config() == original.get_config()
    assert copy.name == "mine"
    assert copy.dtype_policy.name == "mixed_bfloat16"
    for name, value in arguments.items():
        assert getattr(copy, name) == value


@every_layer
def test_weights_are_built_from_shapes_alone(
    layer, arguments, inputs, outputs, weights
):
    built = layer(**arguments)
    built.build(*inputs)
    assert built.built
    assert {
        relative_path(built, weight): tuple(weight.shape)
        for weight in built.weights
    } == weights


@every_policy
@every_layer
def test_symbolic_and_eager_agree(
    layer, arguments, inputs, outputs, weights, policy
):
    subject = layer(**arguments, dtype=policy)
    symbols = [keras.KerasTensor((None, *shape[1:])) for shape in inputs]
    if layer is HeadMixing:  # heads first, then the batch
        symbols = [keras.KerasTensor((2, None, 6, 6))]
    stream = layer in STREAM
    dtypes = [subject.variable_dtype if stream else subject.compute_dtype]
    dtypes += [subject.compute_dtype]

    for scores in range(len(outputs)):
        flag = {"return_attention_scores": True} if scores else {}
        expected = list(zip(outputs, dtypes, strict=False))[: 1 + scores]
        for result in (
            subject(*arrays(inputs), **flag),
            subject(*[keras.KerasTensor(s) for s in inputs], **flag),
        ):
            result = result if scores else [result]
            assert [
                (tuple(x.shape), keras.backend.standardize_dtype(x.dtype))
                for x in result
            ] == expected
        unknown_batch = subject(*symbols, **flag)
        for x, (shape, dtype) in zip(
            unknown_batch if scores else [unknown_batch], expected, strict=True
        ):
            assert x.dtype == dtype
            assert None in x.shape
            assert all(
                a in (None, b) for a, b in zip(x.shape, shape, strict=True)
            )
    assert tuple(subject.compute_output_shape(*inputs)) == outputs[0]


@every_policy
@every_layer
def test_every_weight_learns(
    layer, arguments, inputs, outputs, weights, policy
):
    subject = layer(**arguments, dtype=policy)
    model = model_of(subject, inputs)
    target = np.random.normal(size=outputs[0])

    def loss(outputs):
        return ops.mean(ops.square(ops.cast(outputs, "float32") - target))

    before, by_weights, by_inputs = gradients(model, arrays(inputs), loss)
    assert np.isfinite(before)
    for path, gradient in by_weights.items():
        assert np.isfinite(gradient).all(), path
        assert gradient.any() or path.endswith(CANCEL), path
    for gradient in by_inputs:
        assert np.isfinite(gradient).all()
        assert gradient.any() != (layer is ClassToken)  # only reads the shape


@every_layer
def test_model_file(layer, arguments, inputs, outputs, weights, tmp_path):
    model = model_of(layer(**arguments), inputs)
    model.save(tmp_path / "layer.keras")
    loaded = keras.saving.load_model(tmp_path / "layer.keras")
    x = arrays(inputs)
    np.testing.assert_array_equal(np.asarray(loaded(x)), np.asarray(model(x)))


@pytest.mark.parametrize(
    "block", [SelfAttentionBlock(2), ClassAttentionBlock(2)]
)
def test_scores_of_a_block_are_those_it_used(block):
    """Returning scores does not change the output; each row sums to one."""
    is_class = isinstance(block, ClassAttentionBlock)
    inputs = arrays([TOKEN, PATCHES] if is_class else [PATCHES])
    plain = block(*inputs)
    outputs, scores = block(*inputs, return_attention_scores=True)
    np.testing.assert_allclose(outputs, plain, rtol=1e-5, atol=1e-6)
    if is_class:
        np.testing.assert_allclose(ops.sum(scores, -1), 1, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_keeps_small_gammas(dtype):
    """1e-6 is subnormal in float16, and vanishes when added in bfloat16."""
    block = SelfAttentionBlock(2, init_values=1e-6, dtype=dtype)
    (x,) = arrays([PATCHES])
    block.build(PATCHES)
    block.mlp.fc2.bias.assign(np.ones(8))
    change = np.asarray(block(x)) - x
    np.testing.assert_allclose(change, 1e-6, atol=2e-7)


images, patches, token = np.ones((1, 8, 8, 3)), np.ones(PATCHES), np.ones(TOKEN)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: PatchEmbedding(8.0), "embed_dim must be .*Received: .*8.0"),
        (lambda: PatchEmbedding(8, 0), "patch_size must be .*Received: .*=0"),
        (
            lambda: PatchEmbedding(8, 3)(images),
            r"multiples of patch_size=3. Received: \(8, 8\). Resize the image",
        ),
        (
            lambda: PatchEmbedding(8, 4)(patches),
            r"PatchEmbedding expects inputs of rank 4, .*\(2, 6, 8\)",
        ),
        (
            lambda: PositionEmbedding()(keras.Input((None, None, 8))),
            r"needs the grid .*Received: grid_size=None .*grid_size=\(14, 14\)",
        ),
        (lambda: PositionEmbedding(14), r"must be a pair .*=14. .*\(14, 14\)"),
        (lambda: PositionEmbedding((14, 0)), "grid_size must be an integer"),
        (
            lambda: PositionEmbedding()(patches),
            "PositionEmbedding expects inputs of rank 4",
        ),
        (lambda: ClassToken()(images), "ClassToken expects inputs of rank 3"),
        (lambda: MLP(0), "mlp_ratio must be positive. Received: mlp_ratio=0"),
        (lambda: TalkingHeadsAttention(0), "num_heads must be an integer"),
        (lambda: ClassAttention(True), "num_heads must be an integer"),
        (
            lambda: TalkingHeadsAttention(3)(patches),
            "divisible by the number of heads. Received: embed_dim=8, "
            "num_heads=3",
        ),
        (
            lambda: ClassAttention(3)(token, patches),
            "divisible by the number of heads",
        ),
        (
            lambda: TalkingHeadsAttention(2)(images),
            "TalkingHeadsAttention expects inputs of rank 3",
        ),
        (
            lambda: ClassAttentionBlock(2)(token[:, 0], patches),
            "rank 3",
        ),
        (
            lambda: SelfAttentionBlock(2, drop_path_rate=1.0),
            "less than 1. Received: drop_path_rate=1.0",
        ),
        (
            lambda: SelfAttentionBlock(2, drop_path_rate=-0.1),
            "at least 0 .* Received: drop_path_rate=-0.1",
        ),
        (
            lambda: SelfAttentionBlock(2, drop_path_rate="0.1"),
            "less than 1. Received: drop_path_rate='0.1'",
        ),
        (lambda: MLP(None), "mlp_ratio must be positive. .*=None"),
        (lambda: LayerScale("1"), "init_values must be a number. .*='1'"),
        (lambda: LayerScale(np.nan), "init_values=nan. For example 1e-5"),
    ],
)
def test_errors_say_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()
