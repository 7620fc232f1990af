"""All numbers recorded from the reference, in float32.

The tolerance of an array is four times the difference between the reference's
own float32 and float64 passes. For arrays of a few numbers that difference is
luck (1.7e-7 to 1.0e-6 for class attention), so these have the tolerance of the
worst array of their case.
"""

import functools

import keras
import numpy as np
import pytest
from keras import ops

import keras_cait
from keras_cait.conversion import from_reference, reference_name, to_reference
from tests.helpers.models import gradients
from tests.helpers.oracle_weights import checksum, make_input, state_dict
from tests.helpers.reference import reference

TINY = ["tiny", "tiny_eps", "tiny_rect"]
# PyTorch: dense kernels (out, in), convolutions (out, in, height, width).
PYTORCH_AXES = {2: (1, 0), 4: (3, 2, 0, 1)}
FEW_NUMBERS = {"class_attn0", "class_attn1", "loss"}
CASES = [
    *TINY,
    "cait_xxs24_224",
    "cait_s24_224",
    "cait_xs24_384",
    pytest.param("cait_m36_384", marks=pytest.mark.large),
]


@functools.cache
def recorded_model(name):
    """The model of a case with the recorded weights, and the images."""
    info, _ = reference(name)
    case = info["case"]
    images = make_input(info["input_shape_nhwc"], case["input_seed"])
    options = {
        "weights": None,
        "input_shape": images.shape[1:],
        "classifier_activation": None,
        "include_preprocessing": False,
    }
    if name in TINY:
        size = case["kwargs"]
        model = keras_cait.CaiT(
            embed_dim=size["embed_dim"],
            depth=size["depth"],
            num_heads=size["num_heads"],
            patch_size=size["patch_size"],
            classes=size["num_classes"],
            **options,
        )
    else:
        variant = name.split("_")[1].upper()
        model = getattr(keras_cait, f"CaiT_{variant}")(**options)
    tensors = state_dict(
        info["state_dict_shapes"], case["seed"], case.get("embed_scale", 1.0)
    )
    assert checksum(tensors) == info["weights_sha256"]
    from_reference(model.weights, tensors)
    return model, images


def intermediates(model, images):
    """All intermediates that the reference records, by name."""
    last = model.depth - 1
    names = {
        "embedded": "position_embedding",
        **{
            f"block{i}": f"self_attention_block_{i}" for i in range(model.depth)
        },
        "class_token": "class_token",
        "class_token0": "class_attention_block_0",
        "class_token1": "class_attention_block_1",
        "pre_logits": "pooling",
        "logits": "head",
    }
    layers = {key: model.get_layer(name) for key, name in names.items()}
    found = dict(
        zip(
            names,
            keras.Model(
                model.input, [layer.output for layer in layers.values()]
            )(images),
            strict=True,
        )
    )
    patches = found[f"block{last}"]
    for i, token in enumerate(("class_token", "class_token0")):
        _, scores = layers[f"class_token{i}"](
            found[token], patches, return_attention_scores=True
        )
        found[f"class_attn{i}"] = scores[:, :, 0]
    _, found["talk_mixed"] = layers["block0"](
        found["embedded"], return_attention_scores=True
    )
    found["talk_softmax"] = scores_without_second_mixing(
        layers["block0"], found["embedded"]
    )
    found["features"] = model.get_layer("norm")(
        ops.concatenate([found["class_token1"], patches], axis=1)
    )
    return {
        key: ops.convert_to_numpy(x).astype("float64")
        for key, x in found.items()
    }


def scores_without_second_mixing(block, inputs):
    """The scores after the softmax: `proj_weights` becomes the identity."""
    mixing = block.attention.proj_weights
    learned = [ops.convert_to_numpy(w) for w in mixing.weights]
    mixing.kernel.assign(np.eye(block.num_heads))
    mixing.bias.assign(np.zeros(block.num_heads))
    _, scores = block(inputs, return_attention_scores=True)
    for weight, value in zip(mixing.weights, learned, strict=True):
        weight.assign(value)
    return scores


def as_recorded(found, key, shape):
    """The part of an intermediate that was recorded for the large models."""
    if key.endswith("_mean"):
        return found[key.removesuffix("_mean")].mean(axis=1)
    if key.endswith("_std"):
        return found[key.removesuffix("_std")].std(axis=1)
    array = found[key]
    if array.shape == shape:
        return array
    if key.startswith("talk_"):  # image 0, queries 0, 1 and the last
        return array[:1, :, [0, 1, -1]]
    if key.startswith("class_attn"):
        return array[:1]
    return np.concatenate([array[:, :4], array[:, -4:]], axis=1)


def assert_as_recorded(name, key, actual):
    info, arrays = reference(name)
    expected = arrays[key]
    assert actual.shape == expected.shape
    rounding = info["float32_vs_float64"]
    own = max(rounding.values()) if key in FEW_NUMBERS else rounding[key]
    spread = np.abs(actual - expected).max() / np.abs(expected).max()
    assert spread <= 4 * own, (
        f"{name}: {key} differs by {spread:.1e}, "
        f"{spread / own:.1f} times the rounding of the reference."
    )


@pytest.mark.parametrize("name", CASES)
def test_every_recorded_intermediate(name):
    _, arrays = reference(name)
    found = intermediates(*recorded_model(name))
    backward = {"targets", "loss", "grad_norm", "grad_first8", "grad_input"}
    for key in arrays.keys() - backward:
        actual = as_recorded(found, key, arrays[key].shape)
        assert_as_recorded(name, key, actual)


@pytest.mark.parametrize("name", TINY)
def test_every_recorded_gradient(name):
    info, arrays = reference(name)
    model, images = recorded_model(name)

    def cross_entropy(logits):
        return -ops.mean(
            ops.sum(arrays["targets"] * ops.log_softmax(logits), axis=-1)
        )

    loss, by_weights, by_images = gradients(model, images, cross_entropy)
    found = {"loss": np.asarray(loss), "grad_input": by_images}
    by_name = {
        reference_name(path): gradient.transpose(
            PYTORCH_AXES.get(gradient.ndim, range(gradient.ndim))
        ).ravel()
        for path, gradient in by_weights.items()
    }
    ordered = [by_name[name] for name in info["parameter_order"]]
    found["grad_norm"] = np.array([np.linalg.norm(g) for g in ordered])
    found["grad_first8"] = np.array(
        [np.pad(g[:8], (0, max(0, 8 - g.size))) for g in ordered]
    )
    for key, actual in found.items():
        assert_as_recorded(name, key, actual)


def test_tensors_that_no_output_shows():
    """They cancel in the softmax, so only their values can be compared."""
    model, _ = recorded_model("tiny")
    info, _ = reference("tiny")
    tensors = state_dict(info["state_dict_shapes"], info["case"]["seed"])
    loaded = to_reference(model.weights)
    for name in [
        *(f"blocks.{i}.attn.proj_l.bias" for i in range(3)),
        *(f"blocks.{i}.attn.qkv.bias" for i in range(3)),
        *(f"blocks_token_only.{i}.attn.k.bias" for i in range(2)),
    ]:
        np.testing.assert_array_equal(loaded[name], tensors[name])
