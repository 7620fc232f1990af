"""Attention maps of the right patches, at any size, equal to the scores."""

import keras
import numpy as np
import pytest

import keras_cait
from keras_cait import attention_maps
from keras_cait.baselines import ViT
from tests.helpers.models import randomise, small


def wide_model(input_shape):
    """A model with learned positions for a grid of 2 x 5 patches."""
    return randomise(
        small(
            depth=3,
            input_shape=input_shape,
            grid_size=(2, 5),
            class_attention_depth=3,
        )
    )


@pytest.fixture
def wide_images():
    return np.random.default_rng(0).integers(0, 256, (3, 16, 40, 3), "uint8")


@pytest.mark.parametrize("input_shape", [(16, 40, 3), (None, None, 3)])
def test_maps_of_any_size(input_shape, wide_images):
    model = wide_model(input_shape)
    maps = keras_cait.class_attention_maps(model, wide_images)
    assert maps.shape == (3, 3, 2, 2, 5) and maps.dtype == np.float32
    assert (maps > 0).all() and (maps.sum((-2, -1)) < 1).all()
    assert np.abs(maps[0] - maps[1]).max() > 1e-3  # they depend on the image

    saliency = keras_cait.saliency_maps(model, wide_images)
    assert saliency.shape == (3, 2, 5)
    assert (saliency.min((1, 2)) == 0).all() and (
        saliency.max((1, 2)) == 1
    ).all()
    first = maps[:, 0].mean(1)
    low, high = (f((1, 2), keepdims=True) for f in (first.min, first.max))
    np.testing.assert_allclose(
        saliency, (first - low) / (high - low), atol=1e-6
    )

    self_maps = attention_maps.self_attention_maps(model, wide_images, 1)
    assert self_maps.shape == (3, 2, 2, 5, 2, 5)


def test_maps_are_the_scores_of_the_blocks(wide_images):
    model = wide_model((16, 40, 3))
    maps = keras_cait.class_attention_maps(model, wide_images)
    features = keras_cait.intermediate_features(
        model, [0, "self_attention_block_1", -1, "class_token"]
    )
    block_0, block_1, patches, token = features(wide_images)
    for i, block in enumerate(model.class_attention_blocks):
        token, scores = block(token, patches, return_attention_scores=True)
        scores = keras.ops.convert_to_numpy(scores)
        # Patch 7 lies in row 1, column 2 of the 2 x 5 grid.
        np.testing.assert_allclose(
            maps[:, i, :, 1, 2], scores[:, :, 0, 1 + 7], atol=1e-6
        )
    _, scores = model.self_attention_blocks[1](
        block_0, return_attention_scores=True
    )
    self_maps = attention_maps.self_attention_maps(model, wide_images, -2)
    np.testing.assert_allclose(
        self_maps[:, :, 1, 2, 0, 4],
        keras.ops.convert_to_numpy(scores)[:, :, 7, 4],
        atol=1e-6,
    )
    np.testing.assert_allclose(
        keras_cait.intermediate_features(model, np.int64(1))(wide_images),
        block_1,
        rtol=1e-5,
        atol=1e-5,
    )


def test_a_marked_patch_is_found_where_it_is():
    """A bright patch changes the maps most in its own row and column."""
    model = wide_model((16, 40, 3))
    plain = np.full((1, 16, 40, 3), 100, "uint8")
    marked = plain.copy()
    marked[:, 8:, 16:24] = np.random.default_rng(0).integers(0, 256, (8, 8, 3))
    # After the first self-attention block, all patches are mixed.
    change = np.abs(
        attention_maps.self_attention_maps(model, marked, 0)
        - attention_maps.self_attention_maps(model, plain, 0)
    ).mean((0, 1, 2, 3))
    assert np.unravel_index(change.argmax(), change.shape) == (1, 2)


def test_maps_of_models_around_the_backbone(small_model, images):
    expected = keras_cait.class_attention_maps(small_model, images)
    token = small_model.get_layer("pooling").output
    other_head = keras.Model(small_model.inputs, keras.layers.Dense(2)(token))
    np.testing.assert_array_equal(
        keras_cait.class_attention_maps(other_head, images), expected
    )


def test_maps_of_a_vit_leave_its_class_token_out(images):
    model = randomise(
        ViT(24, 2, 2, patch_size=8, input_shape=(32, 32, 3), classes=5)
    )
    maps = attention_maps.self_attention_maps(model, images, 0)
    tokens = keras.Model(model.input, model.self_attention_blocks[0].input)
    _, scores = model.self_attention_blocks[0](
        tokens(images), return_attention_scores=True
    )
    np.testing.assert_allclose(
        maps.reshape(2, 2, 16, 16), scores[:, :, 1:, 1:], atol=1e-6
    )


def test_maps_of_bfloat16_models_are_float32(images):
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = keras_cait.CaiT(8, 1, 2, 8, input_shape=(32, 32, 3))
    assert keras_cait.class_attention_maps(model, images).dtype == np.float32


def test_overlay_is_bright_where_the_map_is():
    gray = np.full((30, 50, 3), 128, "uint8")
    attention = np.zeros((3, 5))
    attention[2, 1] = 7
    drawn = attention_maps.overlay(gray, attention)
    assert drawn.shape == gray.shape and drawn.dtype == np.uint8
    row, column = np.unravel_index(drawn.sum(-1).argmax(), (30, 50))
    assert (row // 10, column // 10) == (2, 1)
    flat = attention_maps.overlay(gray, np.ones((3, 5)))
    # The first color of the map hides 60 % of the gray.
    assert (flat == np.round(0.4 * 128 + 0.6 * np.array([10, 5, 40]))).all()


@pytest.mark.parametrize("depth, panels", [(1, 2 + 3), (2, 2 + 6)])
def test_figure_shows_all_heads(depth, panels, tmp_path):
    drawn = attention_maps.figure(
        np.zeros((30, 50, 3), "uint8"), np.ones((depth, 3, 3, 5))
    )
    titles = [axes.get_title() for axes in drawn.axes]
    assert len(set(titles)) == panels
    assert f"block {depth - 1}, head 2" in titles
    drawn.savefig(tmp_path / "attention.png")


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda model, images: keras_cait.class_attention_maps(
                keras.Sequential([keras.Input((32, 32, 3)), model]), images
            ),
            "has no ClassAttentionBlock among its layers. Pass the CaiT itself",
        ),
        (
            lambda model, images: attention_maps.self_attention_maps(
                model, images, 2
            ),
            "2 self-attention blocks, 0 to 1, or -1 .* Received: 2",
        ),
        (
            lambda model, _: keras_cait.intermediate_features(model, "block_7"),
            "has no layer 'block_7'. It has: images, normalization",
        ),
        (
            lambda model, _: keras_cait.intermediate_features(model, [-3]),
            "Received: -3",
        ),
        (
            lambda _, images: attention_maps.overlay(images, np.ones((2, 2))),
            r"image must be a uint8 array .* shape \(2, 32, 32, 3\)",
        ),
        (
            lambda _, images: attention_maps.overlay(
                images[0], np.ones((2, 2)), opacity=2
            ),
            "opacity must be in 0...1. Received: 2",
        ),
        (
            lambda model, _: keras_cait.saliency_maps(model, "photo.jpg"),
            r"images must be an array \(batch, .*Received: str .*load_image",
        ),
        (
            lambda model, images: keras_cait.saliency_maps(
                model, (images, np.zeros(2))
            ),
            r"images must be an array .* Received: tuple",
        ),
        (
            lambda model, images: keras_cait.saliency_maps(model, images[0]),
            r"shape \(32, 32, 3\). For one image, use image\[None\]",
        ),
        (
            lambda model, images: keras_cait.saliency_maps(images, model),
            "has no ClassAttentionBlock among",
        ),
        (
            lambda model, _: keras_cait.intermediate_features(model, None),
            "has no layer None. It has: images",
        ),
        (
            lambda _, images: attention_maps.overlay(images[0], np.ones(4)),
            r"attention must be one map .* shape \(4,\)",
        ),
        (
            lambda _, images: attention_maps.figure(images[0], np.ones((2, 2))),
            r"maps must be those of one image, .* shape \(2, 2\)",
        ),
    ],
)
def test_errors_say_what_and_how(call, message, small_model, images):
    with pytest.raises(ValueError, match=message):
        call(small_model, images)
