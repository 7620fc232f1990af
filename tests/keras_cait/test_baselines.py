"""ViT and DeiT, and the residual scalings that the paper compares."""

import functools

import keras
import numpy as np
import pytest
from keras import ops
from safetensors.numpy import save_file

from keras_cait.baselines import SIZES, ResidualBlock, ViT
from keras_cait.conversion import from_reference, to_reference
from keras_cait.weights import load_weights, save_weights
from tests.helpers.models import gradients, randomise, without_values
from tests.helpers.oracle_weights import checksum, fill, make_input, state_dict
from tests.helpers.reference import reference

CASES = {"deit_small_patch16_224": "S", "vit_tiny_patch16_224": "Ti"}

TINY = functools.partial(
    ViT, 24, 3, 2, patch_size=8, input_shape=(32, 32, 3), classes=5
)


@pytest.mark.parametrize("name", CASES)
def test_numbers_and_files_of_timm(name, tmp_path):
    """A file with timm's names leads to timm's recorded outputs."""
    info, arrays = reference(name)
    case = info["case"]
    tensors = state_dict(info["state_dict_shapes"], case["seed"])
    assert checksum(tensors) == info["weights_sha256"]
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    images = make_input(info["input_shape_nhwc"], case["input_seed"])
    model = ViT(
        **SIZES[CASES[name]],
        weights=path,
        classifier_activation=None,
        include_preprocessing=False,
    )
    body = keras.Model(model.input, model.get_layer("norm").output)
    for key, found in (("logits", model), ("pre_logits", body)):
        expected, rounding = arrays[key], info["float32_vs_float64"][key]
        difference = np.abs(ops.convert_to_numpy(found(images)) - expected)
        assert difference.max() <= 4 * rounding * np.abs(expected).max()


@pytest.mark.parametrize(
    ("size", "millions"), [("Ti", 5.72), ("S", 22.05), ("B", 86.57)]
)
def test_size_is_the_published(size, millions):
    """Millions of parameters, from timm's tables."""
    with without_values():
        model = ViT(**SIZES[size])
    assert round(model.count_params() / 1e6, 2) == millions


def test_positions_of_another_grid_are_resampled(tmp_path):
    """The position of the class token is not resampled with the patches'."""
    tensors = to_reference(randomise(TINY()).weights)
    token_position = fill("pos_embed", (1, 1, 24), seed=1)
    as_vit = {
        **tensors,
        "cls_token": tensors["cls_token"] - token_position,
        "pos_embed": np.concatenate(
            [token_position, tensors["pos_embed"]], axis=1
        ),
    }
    save_file(as_vit, tmp_path / "vit.safetensors")
    save_file(tensors, tmp_path / "ours.safetensors")
    files = (tmp_path / "vit.safetensors", tmp_path / "ours.safetensors")
    vit, ours = (
        to_reference(TINY(weights=file, input_shape=(48, 32, 3)).weights)
        for file in files
    )
    assert vit["pos_embed"].shape == (1, 24, 24)
    for name, tensor in ours.items():
        np.testing.assert_allclose(vit[name], tensor, atol=1e-6)


def test_layer_scale_of_deit_iii(tmp_path):
    """timm uses other names there, and the class token has no position."""
    layer_scale = {"residual_scaling": "layer_scale", "init_values": 0.1}
    tensors = to_reference(randomise(TINY(**layer_scale)).weights)
    renamed = {
        name.replace(".gamma_1", ".ls1.gamma").replace(
            ".gamma_2", ".ls2.gamma"
        ): tensor
        for name, tensor in tensors.items()
    }
    assert renamed.keys() != tensors.keys()
    save_file(renamed, tmp_path / "deit3.safetensors")
    model = TINY(**layer_scale, weights=tmp_path / "deit3.safetensors")
    for name, tensor in to_reference(model.weights).items():
        np.testing.assert_array_equal(tensor, tensors[name])


def test_with_all_choices_of_cait_it_is_cait(small_model, images):
    model = ViT(
        24,
        2,
        2,
        patch_size=8,
        class_attention_depth=2,
        residual_scaling="layer_scale",
        init_values=0.1,
        talking_heads=True,
        input_shape=(32, 32, 3),
        classes=5,
    )
    from_reference(model.weights, to_reference(small_model.weights))
    # Two models that may add in another order: float32 rounding.
    np.testing.assert_allclose(model(images), small_model(images), atol=1e-6)


@pytest.mark.parametrize("entry", [1, 2])
def test_class_token_enters_before_a_block(entry, images):
    model = randomise(TINY(class_token_depth=entry))
    blocks = model.self_attention_blocks
    layers = ("normalization", "patch_embedding", "position_embedding")
    x = images
    for layer in [*map(model.get_layer, layers), *blocks[:entry]]:
        x = layer(x)
    token = model.get_layer("class_token").class_token
    x = ops.concatenate([ops.tile(token, (2, 1, 1)), x], axis=1)
    for block in blocks[entry:]:
        x = block(x)
    expected = model.get_layer("head")(model.get_layer("norm")(x[:, 0]))
    np.testing.assert_allclose(model(images), expected, rtol=1e-5, atol=1e-6)
    # Earlier blocks do not see it: the other entry changes the output.
    other = TINY(class_token_depth=3 - entry)
    from_reference(other.weights, to_reference(model.weights))
    assert np.abs(other(images) - expected).max() > 1e-3


def test_average_pooling_is_the_mean_of_the_patches(images):
    model = randomise(TINY(pooling="avg", include_top=False))
    assert not any("class_token" in w.path for w in model.weights)
    patches = keras.Model(model.input, model.get_layer("norm").output)
    np.testing.assert_allclose(
        model(images),
        np.mean(patches(images), axis=1),
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize("pre_norm", [True, False])
@pytest.mark.parametrize("scaling", ["rezero", "fixup", "scalar"])
def test_a_scalar_multiplies_each_branch(scaling, pre_norm):
    """It equals scaling the last layer of the branch."""
    options = {"init_values": 0.1} if scaling == "scalar" else {}
    tokens = make_input((2, 5, 24), seed=3)
    scaled = ResidualBlock(
        2, residual_scaling=scaling, pre_norm=pre_norm, **options
    )
    plain = ResidualBlock(2, pre_norm=pre_norm)
    for block in (scaled, plain):
        block(tokens)
    scalars = [scaled.layer_scale_1.gamma, scaled.layer_scale_2.gamma]
    start = {"rezero": 0.0, "fixup": 1.0, "scalar": 0.1}[scaling]
    for scalar in scalars:
        np.testing.assert_array_equal(scalar, np.array([start], "float32"))
    others = [w for w in scaled.weights if all(w is not s for s in scalars)]
    for ours, theirs in zip(others, plain.weights, strict=True):
        value = make_input(ours.shape, seed=4, name=ours.name) / 5
        ours.assign(value)
        theirs.assign(value)
    scalars[0].assign([0.7])
    scalars[1].assign([1.3])
    for layer, factor in ((plain.attention.proj, 0.7), (plain.mlp.fc2, 1.3)):
        layer.kernel.assign(layer.kernel * factor)
        layer.bias.assign(layer.bias * factor)
    np.testing.assert_allclose(
        scaled(tokens), plain(tokens), rtol=1e-4, atol=1e-5
    )
    assert np.abs(np.asarray(plain(tokens)) - tokens).max() > 0.1


def test_without_norms_the_branches_read_the_stream():
    tokens = make_input((2, 5, 24), seed=3)
    block = ResidualBlock(2, pre_norm=False)
    block(tokens)
    assert not any("norm" in w.path for w in block.weights)
    for weight in block.weights:
        weight.assign(make_input(weight.shape, 4, weight.name) / 5)
    x = tokens + block.attention(tokens)
    np.testing.assert_allclose(
        block(tokens), x + block.mlp(x), rtol=1e-5, atol=1e-5
    )


def test_rezero_starts_as_the_identity():
    tokens = make_input((2, 5, 24), seed=3)
    block = ResidualBlock(2, residual_scaling="rezero", pre_norm=False)
    np.testing.assert_array_equal(block(tokens), tokens)


def test_fixup_starts_with_branches_and_head_of_zero(images):
    model = TINY(residual_scaling="fixup", classifier_activation=None)
    assert not np.asarray(model(images)).any()
    for block in model.self_attention_blocks:
        for layer in (block.attention.qkv, block.mlp.fc1):
            # A normal of 0.02 * (2 * 3) ** -1/2.
            deviation = np.std(np.asarray(layer.kernel))
            assert deviation == pytest.approx(0.02 * 6**-0.5, rel=0.05)
        for layer in (block.attention.proj, block.mlp.fc2):
            assert not np.asarray(layer.kernel).any()


CHOICES = [
    {},
    {"class_token_depth": 2, "pre_norm": False, "residual_scaling": "fixup"},
    {"pooling": "avg", "residual_scaling": "rezero"},
    {
        "class_attention_depth": 2,
        "residual_scaling": "layer_scale",
        "init_values": 0.1,
        "talking_heads": True,
    },
    {"residual_scaling": "scalar", "init_values": 0.1, "drop_path_rate": 0.2},
]


@pytest.mark.parametrize("choice", CHOICES)
def test_every_weight_gets_a_gradient(choice, images):
    model = randomise(TINY(**choice))
    _, by_weights, _ = gradients(
        model,
        images.astype("float32"),
        lambda probabilities: -ops.mean(ops.log(probabilities[:, 0])),
    )
    assert len(by_weights) == len(
        [w for w in model.weights if "seed_generator" not in w.path]
    )
    for path, gradient in by_weights.items():
        # A constant added to all scores of a query cancels in the softmax.
        if not path.endswith(("proj_logits/bias", "key/bias")):
            assert np.isfinite(gradient).all(), path
            assert gradient.any(), path


@pytest.mark.parametrize("choice", CHOICES)
def test_saved_bfloat16_models_come_back(choice, tmp_path, images):
    model = randomise(TINY(**choice, dtype="mixed_bfloat16"))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.get_config() == model.get_config()
    assert loaded.dtype_policy.name == "mixed_bfloat16"
    np.testing.assert_array_equal(loaded(images), model(images))
    save_weights(model, tmp_path / "model.safetensors")
    other = ViT.from_config(model.get_config())
    load_weights(other, tmp_path / "model.safetensors")
    np.testing.assert_array_equal(other(images), model(images))


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"residual_scaling": "skip"}, "one of none, rezero"),
        ({"residual_scaling": "scalar"}, "init_values is needed"),
        ({"init_values": 0.1}, "only by these"),
        ({"class_token_depth": 3}, "would see no patch"),
        ({"class_token_depth": -1}, "integer from 0 to depth - 1"),
        ({"class_token_depth": 1.5}, "integer from 0 to depth - 1"),
        ({"class_token_depth": 0, "pooling": "avg"}, "must be None"),
        ({"class_token_depth": 0, "class_attention_depth": 2}, "must be None"),
        ({"class_attention_depth": 2, "pooling": "avg"}, "has no class token"),
        ({"pooling": None}, '"token" or "avg"'),
    ],
)
def test_errors_say_what_is_wrong(choice, message):
    with pytest.raises(ValueError, match=message):
        TINY(**choice)
