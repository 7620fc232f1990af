"""Models as a whole: inputs, outputs, files, copies, quantization, errors."""

import json
import pickle
import re

import keras
import numpy as np
import pytest

import keras_cait
from keras_cait.initializers import filled_later
from keras_cait.models import init_values_by_depth
from keras_cait.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from tests.helpers.models import randomise, without_values
from tests.helpers.models import small as random_small


def small(**arguments):
    """A small model with weights of order 1 that returns logits."""
    arguments = {"classifier_activation": None, **arguments}
    return randomise(random_small(**arguments))


def outputs(model, images):
    return keras.ops.convert_to_numpy(
        keras.ops.cast(model(images, training=False), "float32")
    )


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape).astype("uint8")


def test_uint8_and_float_pixels_are_the_same(images):
    model = small()
    expected = outputs(model, images)
    np.testing.assert_array_equal(
        outputs(model, images.astype("float32")), expected
    )
    np.testing.assert_array_equal(
        model.predict(images, verbose=0).shape, expected.shape
    )
    assert np.abs(outputs(model, images[::-1]) - expected).max() > 1e-2


def test_preprocessing_in_the_graph_is_imagenets(images):
    normalized = (images / 255 - IMAGENET_MEAN) / IMAGENET_STD
    np.testing.assert_allclose(
        outputs(small(), images),
        outputs(small(include_preprocessing=False), normalized),
        atol=1e-5,
    )


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels_are_scaled_to_one(channels):
    images = noise(2, 32, 32, channels)
    shape = (32, 32, channels)
    np.testing.assert_allclose(
        outputs(small(input_shape=shape), images),
        outputs(
            small(input_shape=shape, include_preprocessing=False),
            images / 127.5 - 1,
        ),
        atol=1e-5,
    )


def test_unknown_size_equals_static_and_follows_the_batch():
    model = small(input_shape=(None, None, 3), grid_size=(4, 6))
    for shape in [(32, 32, 3), (32, 48, 3), (64, 24, 3)]:
        static = small(input_shape=shape, grid_size=(4, 6))
        images = noise(2, *shape)
        expected = outputs(static, images)
        np.testing.assert_allclose(outputs(model, images), expected, atol=1e-5)
        np.testing.assert_allclose(
            model.predict(images, verbose=0), expected, atol=1e-5
        )


def test_resampled_positions_are_the_layers_own():
    """A model for another size resamples the same positions."""
    wide = small(input_shape=(32, 48, 3), grid_size=(4, 4))
    assert (
        wide.get_layer("position_embedding").position_embedding.shape[1] == 16
    )
    own = small(input_shape=(32, 48, 3))
    images = noise(2, 32, 48, 3)
    difference = outputs(wide, images) - outputs(own, images)
    assert np.abs(difference).max() > 1e-2


@pytest.mark.parametrize(
    "size",
    [
        {"patch_size": 4, "input_shape": (28, 28, 3)},
        {"patch_size": 7, "input_shape": (14, 35, 3)},
        {"embed_dim": 30, "num_heads": 5},
        {"depth": 1, "class_attention_depth": 1, "mlp_ratio": 1.5},
        {"num_heads": 1},
    ],
)
def test_any_patch_size_and_width(size):
    model = small(**size)
    result = outputs(model, noise(2, *model.input_shape[1:]))
    assert result.shape == (2, 5)
    assert np.isfinite(result).all()
    assert np.abs(result[0] - result[1]).max() > 1e-2


def test_weights_start_as_in_the_official_code():
    model = keras_cait.CaiT(48, 1, 4, patch_size=8, input_shape=(32, 32, 3))
    for weight in model.weights:
        values, name = np.asarray(weight), weight.path.split("/")[-1]
        if weight.path.startswith("patch_embedding") and name == "kernel":
            limit = (8 * 8 * 3) ** -0.5  # PyTorch's for a convolution
            assert 0.99 * limit < np.abs(values).max() <= limit
        elif name in ("kernel", "class_token", "position_embedding"):
            assert values.std() == pytest.approx(0.02, rel=0.3), weight.path
        elif name in ("bias", "beta"):
            assert not values.any()


def test_what_the_head_and_the_caller_get(images):
    tokens = outputs(small(include_top=False, pooling=None), images)
    token = outputs(small(include_top=False), images)
    average = outputs(small(include_top=False, pooling="avg"), images)
    assert tokens.shape == (2, 1 + 16, 24)
    np.testing.assert_allclose(token, tokens[:, 0], atol=1e-5)
    np.testing.assert_allclose(average, tokens[:, 1:].mean(1), atol=1e-5)
    for pooling, vector in (("token", token), ("avg", average)):
        model = small(pooling=pooling)
        kernel, bias = model.get_layer("head").get_weights()
        np.testing.assert_allclose(
            outputs(model, images), vector @ kernel + bias, atol=1e-5
        )
    probabilities = outputs(small(classifier_activation="softmax"), images)
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-5)


def test_input_tensor(images):
    inputs = keras.Input((32, 32, 3))
    flipped = keras.ops.flip(inputs, axis=2)
    model = small(input_tensor=flipped)
    assert model.inputs[0] is inputs
    np.testing.assert_allclose(
        outputs(model, images),
        outputs(small(), images[:, :, ::-1]),
        atol=1e-5,
    )


def colors(red, others):
    return keras.layers.Concatenate()([red, others])


@pytest.mark.parametrize(
    ("shapes", "before"),
    [
        ([(32, 32, 3)], keras.layers.Conv2D(3, 3, padding="same", name="conv")),
        ([(32, 32, 3)], lambda images: keras.ops.flip(images, axis=2)),
        ([(64, 64, 3)], keras.layers.Resizing(32, 32)),
        ([(32, 32, 1), (32, 32, 2)], colors),
    ],
)
def test_layers_before_an_input_tensor_are_saved(shapes, before, tmp_path):
    inputs = [keras.Input(shape) for shape in shapes]
    model = small(input_tensor=before(*inputs))
    images = [noise(2, *shape).astype("float32") for shape in shapes]
    expected = model.predict(images, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for copy in (loaded, pickle.loads(pickle.dumps(model))):
        assert isinstance(copy, keras_cait.CaiT)
        found = copy.predict(images, verbose=0)
        np.testing.assert_array_equal(found, expected)


@pytest.fixture
def restored():
    """Keras' settings are restored."""
    policy, layout = (
        keras.config.dtype_policy(),
        keras.config.image_data_format(),
    )
    yield
    keras.config.set_dtype_policy(policy)
    keras.config.set_image_data_format(layout)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("pooling", ["token", "avg", None])
def test_global_settings_change_nothing(pooling, channels, restored):
    arguments = {
        "input_shape": (32, 32, channels),
        "include_top": False,
        "pooling": pooling,
        "dtype": "float32",
    }
    images = noise(2, 32, 32, channels)
    expected = outputs(small(**arguments), images)
    keras.config.set_dtype_policy("mixed_bfloat16")
    keras.config.set_image_data_format("channels_first")
    np.testing.assert_array_equal(outputs(small(**arguments), images), expected)


def test_integers_of_numpy():
    one = np.int64(1)
    model = keras_cait.CaiT(
        *(np.int32(24), one, one),
        patch_size=np.uint8(8),
        classes=5 * one,
        input_shape=(32 * one, 32, 3),
    )
    assert json.dumps(model.get_config())


@pytest.mark.parametrize("drop_path_rate", [0.0, 0.2])
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_keras_file_and_clone(policy, drop_path_rate, images, tmp_path):
    model = small(dtype=policy, drop_path_rate=drop_path_rate)
    expected = outputs(model, images)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    for copy in (loaded, clone):
        np.testing.assert_array_equal(outputs(copy, images), expected)
        assert copy.get_layer("self_attention_block_1").get_config() == (
            model.get_layer("self_attention_block_1").get_config()
        )
    assert type(loaded) is keras_cait.CaiT
    assert loaded.get_config() == model.get_config()


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_policy_as_argument_or_global(policy, images):
    argument = small(dtype=policy)
    keras.config.set_dtype_policy(policy)
    global_policy = small()
    keras.config.set_dtype_policy("float32")
    rebuilt = randomise(keras_cait.CaiT.from_config(global_policy.get_config()))
    expected = outputs(global_policy, images)
    for model in (argument, rebuilt):
        assert model.dtype_policy.name == policy
        np.testing.assert_array_equal(outputs(model, images), expected)
    single = outputs(small(), images)
    assert 0 < np.abs(expected - single).max() < 0.1
    argument.compile("adam")
    scaled = isinstance(argument.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scaled == (policy == "mixed_float16")


def test_config_holds_every_argument():
    arguments = {
        "embed_dim": 30,
        "depth": 3,
        "num_heads": 5,
        "patch_size": 4,
        "mlp_ratio": 2.0,
        "class_attention_depth": 1,
        "init_values": 0.2,
        "drop_path_rate": 0.3,
        "include_top": True,
        "input_shape": (8, 12, 4),
        "pooling": "avg",
        "classes": 7,
        "classifier_activation": "softmax",
        "include_preprocessing": False,
        "grid_size": (3, 3),
        "name": "mine",
    }
    model = keras_cait.CaiT(**arguments)
    config = model.get_config()
    assert arguments.items() <= config.items()
    assert keras_cait.CaiT.from_config(config).get_config() == config


@pytest.mark.parametrize("rates", [(0.0, 0.2), (0.2, 0.0)])
def test_weights_file_does_not_depend_on_stochastic_depth(
    rates, images, tmp_path
):
    ours, theirs = (small(drop_path_rate=rate) for rate in rates)
    randomise(theirs, seed=1)
    ours.save_weights(tmp_path / "model.weights.h5")
    theirs.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(
        outputs(theirs, images), outputs(ours, images)
    )


def test_model_without_head_loads_the_full_file(images, tmp_path):
    full = small()
    full.save_weights(tmp_path / "full.weights.h5")
    backbone = randomise(small(include_top=False), seed=1)
    backbone.load_weights(tmp_path / "full.weights.h5")
    expected = keras.Model(full.input, full.get_layer("pooling").output)
    np.testing.assert_array_equal(
        outputs(backbone, images), outputs(expected, images)
    )


WEIGHTS_ONLY = keras.quantizers.Int8QuantizationConfig(
    activation_quantizer=None
)


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize`")
@pytest.mark.parametrize(
    "arguments",
    [{"mode": "int8"}, {"config": WEIGHTS_ONLY, "filters": "fc1"}],
)
def test_int8(images, tmp_path, monkeypatch, arguments):
    """8-bit dense kernels change logits by less than 2 % of their range."""
    # Keras collects garbage after each kernel, which takes 15 s.
    monkeypatch.setattr("gc.collect", lambda: 0)
    model = small(depth=1)
    expected = outputs(model, images)
    model.quantize(**arguments)
    fc1 = model.self_attention_blocks[0].mlp.fc1
    assert fc1.quantization_mode == "int8"
    result = outputs(model, images)
    assert 0 < np.abs(result - expected).max() < 0.02 * np.ptp(expected)
    model.save(tmp_path / "int8.keras")
    loaded = keras.saving.load_model(tmp_path / "int8.keras")
    np.testing.assert_array_equal(outputs(loaded, images), result)


def test_blocks_are_listed_in_order():
    with without_values():
        model = keras_cait.CaiT(
            *(8, 12, 1), class_attention_depth=3, input_shape=(16, 16, 3)
        )
    assert [block.name for block in model.self_attention_blocks] == [
        f"self_attention_block_{i}" for i in range(12)
    ]
    assert [block.name for block in model.class_attention_blocks] == [
        f"class_attention_block_{i}" for i in range(3)
    ]


@pytest.mark.parametrize(
    "variant, drop_path_rate, init_values",
    [
        ("XXS24", 0.05, 1e-5),
        ("XXS36", 0.1, 1e-5),
        ("XS24", 0.05, 1e-5),
        ("S24", 0.1, 1e-5),
        ("S36", 0.2, 1e-6),
        ("M36", 0.3, 1e-6),
        ("M48", 0.4, 1e-6),
    ],
)
def test_variants_regularize_as_published(variant, drop_path_rate, init_values):
    with without_values():
        model = getattr(keras_cait, f"CaiT_{variant}")(weights=None)
    for block in model.self_attention_blocks:
        assert block.stochastic_depth.rate == drop_path_rate
        assert block.layer_scale_1.init_values == init_values
    assert model.name == f"cait_{variant.lower()}"


def test_layer_scale_starts_by_depth():
    found = [init_values_by_depth(depth) for depth in (18, 19, 24, 25)]
    assert found == [0.1, 1e-5, 1e-5, 1e-6]
    assert small(depth=1).init_values == 0.1


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"embed_dim": 25}, "heads. Received: embed_dim=25, num_heads=2"),
        ({"embed_dim": 24.0}, "embed_dim must be an integer .*=24.0"),
        ({"num_heads": 0}, "num_heads must be an integer .*=0"),
        ({"depth": 0}, "depth must be an integer greater than 0.*=0"),
        ({"class_attention_depth": 0}, "class_attention_depth must be"),
        ({"classes": 0}, "classes must be an integer .*classes=0"),
        (
            {"patch_size": 0, "input_shape": (None, None, 3)},
            "patch_size must be an integer .*=0",
        ),
        ({"drop_path_rate": 1}, "less than 1. Received: drop_path_rate=1"),
        (
            {"input_shape": (32, 36, 3)},
            r"multiples of patch_size=8. Received: \(32, 36\). Resize",
        ),
        ({"input_shape": (32, 32)}, r"For example \(224, 224, 3\)"),
        ({"input_shape": (32, 32, None)}, "input_shape must be"),
        ({"input_shape": (0, 32, 3)}, "input_shape must be"),
        ({"input_shape": 224}, "input_shape must be .*input_shape=224"),
        ({"grid_size": 4}, "grid_size must be a pair .*grid_size=4"),
        ({"pooling": "max"}, "pooling must be \"token\" .*pooling='max'"),
        ({"pooling": None}, "pooling=None with include_top=True. Use"),
        ({"weights": "imagnet"}, "Received: .*imagnet"),
        ({"weights": "missing.weights.h5"}, "missing.weights.h5"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_errors_say_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        small(**arguments)


def test_image_of_another_rank(small_model):
    with pytest.raises(ValueError, match="incompatible with the layer"):
        small_model(np.zeros((32, 32, 3), "uint8"))


def test_random_weights_are_drawn_as_by_the_reference():
    """PyTorch's `trunc_normal_(std=0.02)` cuts at 2, not at two deviations."""
    keras.utils.set_random_seed(0)
    model = random_small()
    drawn = ("kernel", "class_token", "position_embedding")
    values = np.concatenate(
        [
            np.ravel(keras.ops.convert_to_numpy(weight))
            for weight in model.weights
            if weight.name in drawn and "patch_embedding" not in weight.path
        ]
    )
    assert np.std(values) == pytest.approx(0.02, rel=0.02)
    assert np.max(abs(values)) > 3 * 0.02


def test_only_kernels_of_blocks_are_left_to_a_file():
    def build():
        keras.utils.set_random_seed(0)
        return random_small()

    drawn = build()
    with filled_later():
        awaiting = build()
    is_left = re.compile(r"block_\d/.*(qkv|query|key|value|proj|fc\d)/kernel$")
    for ours, theirs in zip(awaiting.weights, drawn.weights, strict=True):
        expected = keras.ops.convert_to_numpy(theirs)
        if is_left.search(ours.path):
            expected = np.zeros_like(expected)
        np.testing.assert_array_equal(
            keras.ops.convert_to_numpy(ours), expected
        )
