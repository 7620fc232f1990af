"""Maps of a class: the rule they state, and digits found where they are."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_cait
from benchmarks import explanations
from keras_cait.gradients import gradients
from tests.helpers.models import randomise, small


@pytest.fixture
def wide_model():
    """A CaiT of 5 classes for a grid of 2 x 5 patches of 8 pixels."""
    return randomise(small(depth=3, input_shape=(16, 40, 3)))


@pytest.fixture
def wide_images():
    return np.random.default_rng(0).integers(0, 256, (3, 16, 40, 3), "uint8")


def relevance(model, images, labels):
    """The rule with whole matrices, from the first block to the last."""
    self_blocks = model.self_attention_blocks
    class_blocks = model.class_attention_blocks
    embed = keras.Model(
        model.input, model.get_layer("position_embedding").output
    )
    embedded = embed(images)
    batch, patches, _ = embedded.shape
    token = model.get_layer("class_token")(embedded)

    def logits(*scales):
        x, y = embedded, token
        for block, scale in zip(self_blocks, scales, strict=False):
            x = block(x, scores_scale=scale)
        for block, scale in zip(
            class_blocks, scales[len(self_blocks) :], strict=True
        ):
            y = block(y, x, scores_scale=scale)
        features = model.get_layer("norm")(y)[:, 0]
        head = model.get_layer("head")
        scores = ops.matmul(features, head.kernel) + head.bias
        return ops.sum(scores * ops.one_hot(labels, scores.shape[-1]))

    square, row = (batch, 2, patches, patches), (batch, 2, 1, 1 + patches)
    shapes = [square] * len(self_blocks) + [row] * len(class_blocks)
    R = np.stack([np.eye(1 + patches)] * batch)
    for by_scale in gradients(logits, *map(ops.ones, shapes)):
        positive = np.maximum(ops.convert_to_numpy(by_scale), 0).mean(1)
        E = np.zeros_like(R)
        first = 1 if len(positive[0]) > 1 else 0
        E[:, first : first + len(positive[0]), -positive.shape[-1] :] = positive
        R = R + E @ R  # Chefer et al., equations 5 and 6
    return R[:, 0, 1:].reshape(batch, 2, 5)


def test_relevance_follows_the_stated_rule(wide_model, wide_images):
    labels = [4, 0, 2]
    maps = keras_cait.relevance_maps(wide_model, wide_images, labels)
    assert maps.shape == (3, 2, 5) and maps.dtype == np.float32
    np.testing.assert_allclose(
        maps, relevance(wide_model, wide_images, labels), rtol=1e-4, atol=1e-6
    )


def test_occlusion_is_the_drop_of_the_logit(wide_model, wide_images):
    first, second = (
        keras_cait.occlusion_maps(
            wide_model, wide_images, label, batch_size=size, verbose=0
        )
        for label, size in ((3, 32), (0, 7))
    )
    assert first.shape == (3, 2, 5) and first.dtype == np.float32
    covered = wide_images.copy()
    for image in covered:  # the 3 x 3 patches around row 0, column 3
        image[:16, 16:40] = image.mean((0, 1)).astype("uint8")
    before, after = (
        np.log(wide_model.predict(x, verbose=0)) for x in (wide_images, covered)
    )
    # Logarithms of probabilities are logits less what all classes share.
    drops = before - after
    np.testing.assert_allclose(
        (first - second)[:, 0, 3], drops[:, 3] - drops[:, 0], atol=1e-4
    )


def test_augmentation_in_the_model_is_off(wide_images):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((16, 40, 3))
    flipped = keras.layers.RandomFlip()(inputs)
    model = randomise(small(input_tensor=flipped, input_shape=None))
    for maps in (keras_cait.occlusion_maps, keras_cait.relevance_maps):
        first, second = (maps(model, wide_images, 3) for _ in range(2))
        np.testing.assert_array_equal(first, second)


def test_the_score_is_the_logit_of_the_prediction(wide_model, wide_images):
    """Whatever the activation."""
    expected = keras_cait.relevance_maps(wide_model, wide_images)
    predicted = wide_model.predict(wide_images, verbose=0).argmax(-1)
    config = {**wide_model.get_config(), "classifier_activation": None}
    logits = keras_cait.CaiT.from_config(config)
    logits.set_weights(wide_model.get_weights())
    softmax = keras.Model(
        logits.input, keras.layers.Softmax(dtype="float32")(logits.output)
    )
    for model in (logits, softmax):
        maps = keras_cait.relevance_maps(model, wide_images, predicted)
        np.testing.assert_allclose(maps, expected, rtol=1e-4, atol=1e-6)


def test_models_that_do_not_classify_are_refused(wide_model, wide_images):
    features = wide_model.get_layer("pooling").output
    models = [
        keras.Model(wide_model.input, [wide_model.output, features]),
        *(
            small(include_top=False, pooling=pooling, input_shape=(16, 40, 3))
            for pooling in ("token", None)
        ),
    ]
    for model in models:
        for maps in (keras_cait.relevance_maps, keras_cait.occlusion_maps):
            with pytest.raises(ValueError, match="does not classify"):
                maps(model, wide_images)


@pytest.fixture(scope="module")
def digits():
    """A model of digits that are moved about, and canvases of one and two."""
    model = explanations.model()
    keras_cait.load_weights(model, explanations.WEIGHTS)
    one, two = (
        explanations.canvases("validation", number, 30, seed=0)
        for number in (1, 2)
    )
    return model, one, two


def test_maps_lie_on_the_digit_and_on_the_one_of_the_class(digits):
    rows = explanations.measure(*digits)
    on_the_digit, on_its_own, more_often = rows["`relevance_maps`"]
    chance = rows["chance"]
    for name in ("`relevance_maps`", "`occlusion_maps`"):
        assert rows[name][on_the_digit] > 4 * chance[on_the_digit], name
        assert rows[name][on_its_own] > 60, name
        assert rows[name][more_often] > 65, name


@pytest.mark.parametrize(
    "policy", ["mixed_bfloat16", "mixed_float16", "bfloat16"]
)
def test_relevance_in_16_bits(policy, digits):
    model, _, two = digits
    labels = two.labels[:8, 0]
    expected = keras_cait.relevance_maps(model, two.images[:8], labels)
    config = {**model.get_config(), "dtype": policy}
    half = keras_cait.CaiT.from_config(config)
    half.set_weights(model.get_weights())
    maps = keras_cait.relevance_maps(half, two.images[:8], labels)
    assert maps.dtype == np.float32
    for found, correct in zip(maps, expected, strict=True):
        assert np.corrcoef(found.ravel(), correct.ravel())[0, 1] > 0.95


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda model, images: keras_cait.relevance_maps(model, images, 5),
            r"in 0\.\.\.4, or one for each of the 3 images. Received: .*5",
        ),
        (
            lambda model, images: keras_cait.occlusion_maps(
                model, images, [1, 2], verbose=0
            ),
            r"one for each of the 3 images. Received: classes=\[1, 2\]",
        ),
        (
            lambda model, images: keras_cait.occlusion_maps(
                model, images, window=2
            ),
            "window must be odd.* window=2. Use 3",
        ),
        (
            lambda model, images: keras_cait.relevance_maps(
                keras.Sequential([keras.Input((16, 40, 3)), model]), images
            ),
            "has no ClassAttentionBlock among its layers",
        ),
    ],
)
def test_errors_say_what_and_how(call, message, wide_model, wide_images):
    with pytest.raises(ValueError, match=message):
        call(wide_model, wide_images)
