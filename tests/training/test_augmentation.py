"""Augmentation beside that of timm on Pillow images."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from keras_cait import preprocess_input
from tests.helpers.reference import REFERENCE, reference
from training.data.augmentation import (
    crop_box,
    erasing_box,
    random_erasing,
    random_flip,
    random_resized_crop,
)
from training.data.mixup import cutmix_box, mix, mixup_cutmix, smooth_one_hot
from training.data.pipeline import mixing, training_transform
from training.data.randaugment import FILL, OPERATIONS, apply, rand_augment
from training.recipe import Recipe
from training.recipes import RECIPES

RECIPE = REFERENCE / "recipe"
RANDAUGMENT, PIXELS = reference("recipe/randaugment")
CROPS = json.loads((RECIPE / "random_resized_crop.json").read_text())
ERASING = json.loads((RECIPE / "random_erasing.json").read_text())
MIXUP, MIXED = reference("recipe/mixup")
PHOTO = RECIPE.parent / "preprocess/landscape_500x375.png"
SIGNS = {"+": 1.0, "-": -1.0}

# Of the coordinates' float32 rounding, where Pillow's are float64: a share of
# the values that are one level off, and no value is two off.
ONE_LEVEL_OFF = {
    "Rotate": 1e-3,
    "ShearX": 0.01,
    "ShearY": 0.01,
    "TranslateXRel": 0.02,
    "TranslateYRel": 0.02,
}


@pytest.fixture(scope="module")
def jpeg():
    """A photo of 500 x 375, as an encoded JPEG."""
    return tf.io.encode_jpeg(np.array(Image.open(PHOTO)), quality=95)


def test_randaugment_is_what_the_reference_draws_from():
    assert list(OPERATIONS) == RANDAUGMENT["op_order"]
    assert list(FILL) == RANDAUGMENT["fill"]


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("sign", SIGNS)
def test_arguments_of_operations(name, sign):
    _, argument = OPERATIONS[name]
    for level, expected in zip(
        RANDAUGMENT["magnitudes"],
        RANDAUGMENT["level_to_args"][name][sign],
        strict=True,
    ):
        if expected:
            ours = argument(tf.constant(level, tf.float64), SIGNS[sign])
            np.testing.assert_allclose(ours, expected[0], rtol=1e-12)


@pytest.mark.parametrize("name", OPERATIONS)
def test_pixels_of_operations(name):
    change = tf.function(apply)
    compared = 0
    for key, expected in PIXELS.items():
        image, _, rest = key.partition("_")
        operation, _, level = rest.partition("_m")
        if operation != name:
            continue
        ours = change(
            tf.cast(PIXELS[image], tf.float32),
            tf.constant(list(OPERATIONS).index(name)),
            tf.constant(float(level.rstrip("+-") or 0)),
            tf.constant(SIGNS.get(level[-1:], 1.0)),
        ).numpy()
        np.testing.assert_array_equal(ours, ours.astype("uint8"))
        difference = np.abs(ours - expected)
        assert difference.max() <= (name in ONE_LEVEL_OFF), key
        assert np.mean(difference > 0) <= ONE_LEVEL_OFF.get(name, 0), key
        compared += 1
    assert compared >= 2


def test_randaugment_draws_operations_as_the_reference(monkeypatch):
    # Each operation marks the image with its number, level and sign.
    import training.data.randaugment

    marks = {
        name: (
            lambda image, mark, i=i: image * 1e4 + i * 100 + mark,
            lambda level, sign: sign * level,
        )
        for i, name in enumerate(OPERATIONS)
    }
    monkeypatch.setattr(training.data.randaugment, "OPERATIONS", marks)
    runs = 2000
    draw = tf.function(lambda seed: rand_augment(tf.zeros(()), seed))
    results = np.array([draw(tf.constant([i, 5])) for i in range(runs)])
    changed = results[results != 0]
    assert len(changed) / runs == pytest.approx(0.75, abs=0.03)
    single = changed[np.abs(changed) < 1e4]
    number = np.round(single / 100)
    mark = single - 100 * number
    assert np.bincount(number.astype(int), minlength=15).min() > 50
    assert np.mean(mark > 0) == pytest.approx(0.5, abs=0.05)
    level = np.abs(mark)
    assert level.mean() == pytest.approx(RANDAUGMENT["magnitude"], abs=0.05)
    assert level.std() == pytest.approx(RANDAUGMENT["magnitude_std"], abs=0.05)
    assert level.max() <= 10


@pytest.mark.parametrize("case", CROPS["cases"])
def test_crops_are_drawn_as_in_the_reference(case):
    draws = tf.constant(case["draws"], tf.float32)
    box = crop_box(case["height"], case["width"], draws)
    assert box.numpy().tolist() == case["top_left_h_w"]


def test_no_crop_is_empty():
    """Where the drawn sides would be rounded to 0, as in torchvision."""
    assert crop_box(1, 1, tf.zeros((2, 4))).numpy().tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("case", ERASING["scripted"])
def test_erased_boxes_are_drawn_as_in_the_reference(case):
    height, width = case["height"], case["width"]
    # The reference draws a corner only where the size fits: two numbers for a
    # lost try, four for the last.
    script = case["draws"][1 : case["used"]]
    lost = [[*script[i : i + 2], 0, 0] for i in range(0, len(script) - 4, 2)]
    tries = [*lost, script[-4:]]
    tries += [[0, 0, 0, 0]] * (ERASING["tries"] - len(tries))
    box = erasing_box(height, width, tf.constant(tries, tf.float32))
    assert box.numpy().tolist() == case["top_left_h_w"]


def test_erasing_fills_a_quarter_of_the_images_with_noise():
    size, runs = 96, 2000
    recorded = ERASING["statistics"]
    assert (recorded["height"], recorded["width"]) == (size, size)

    @tf.function
    def erased(seed):
        image = random_erasing(tf.fill((size, size, 3), 1e6), seed)
        inside = image[..., 0] < 1e5
        rows = tf.reduce_sum(tf.cast(tf.reduce_any(inside, 1), tf.int32))
        columns = tf.reduce_sum(tf.cast(tf.reduce_any(inside, 0), tf.int32))
        return rows, columns

    sides = np.array(
        [erased(tf.constant([i, 3])) for i in range(runs)], dtype="float64"
    )
    sides = sides[sides[:, 0] > 0]
    assert len(sides) / runs == pytest.approx(
        recorded["fraction_erased"], abs=0.03
    )
    for ours, expected in (
        (sides.prod(axis=1) / size**2, recorded["area_fraction"]),
        (sides[:, 0] / sides[:, 1], recorded["aspect_h_over_w"]),
    ):
        np.testing.assert_allclose(
            np.quantile(ours, recorded["quantiles"][1:-1]),
            expected[1:-1],
            rtol=0.15,
        )


def test_erased_pixels_are_standard_normal_once_normalized():
    image = random_erasing(tf.fill((224, 224, 3), 1e6), (0, 1), 1.0).numpy()
    noise = preprocess_input(image)[image[..., 0] < 1e5]
    assert len(noise) > 1000
    np.testing.assert_allclose(noise.mean(axis=0), 0, atol=0.05)
    np.testing.assert_allclose(noise.std(axis=0), 1, atol=0.05)


def test_a_crop_is_resized_as_by_pillow(jpeg):
    draws = tf.random.stateless_uniform((10, 4), (3, 4))
    top, left, height, width = crop_box(375, 500, draws).numpy()
    decoded = np.array(Image.open(io.BytesIO(jpeg.numpy())))
    part = decoded[top : top + height, left : left + width]
    expected = Image.fromarray(part).resize((96, 96), Image.Resampling.BICUBIC)
    for image in (jpeg, tf.constant(decoded), tf.io.encode_png(decoded)):
        ours = random_resized_crop(image, (3, 4), 96).numpy()
        np.testing.assert_array_equal(ours, ours.astype("uint8"))
        # Pillow rounds to 8 bits between its two passes.
        difference = np.abs(ours - np.asarray(expected, "float32"))
        assert difference.max() <= 1
        assert difference.mean() < 0.2


def test_files_that_cannot_be_decoded_are_errors(jpeg):
    for file in (b"no image", jpeg.numpy()[:100]):
        with pytest.raises(tf.errors.InvalidArgumentError):
            random_resized_crop(tf.constant(file), (0, 1), 32)


def test_an_image_depends_only_on_its_seed(jpeg):
    """In whatever order, batch and parallel map it comes."""
    recipe = replace(RECIPES["s24-224"], image_size=64)
    augment = training_transform(recipe)
    seeds = np.stack([np.arange(12), np.full(12, 7)], axis=1)

    def run(seeds, batch):
        return np.concatenate(
            list(
                tf.data.Dataset.from_tensor_slices(seeds)
                .map(
                    lambda seed: augment(jpeg, seed),
                    num_parallel_calls=4,
                )
                .batch(batch)
                .as_numpy_iterator()
            )
        )

    once = run(seeds, 12)
    np.testing.assert_array_equal(run(seeds[::-1], 5)[::-1], once)
    assert len({image.tobytes() for image in once}) == 12
    never, always = (
        training_transform(replace(recipe, random_erasing=share))(jpeg, (0, 7))
        for share in (0.0, 1.0)
    )
    assert (never != always).numpy().any()


def test_images_are_flipped_half_of_the_time():
    image = np.arange(12).reshape(2, 2, 3)
    sides = []
    for i in range(200):
        ours = np.array(random_flip(image, (i, 0)))
        flipped = bool((ours != image).any())
        np.testing.assert_array_equal(ours, image[:, :: -1 if flipped else 1])
        sides.append(flipped)
    assert 70 < sum(sides) < 130


@pytest.mark.parametrize("case", MIXUP["boxes"])
def test_boxes_of_cutmix(case):
    box = cutmix_box(
        case["height"],
        case["width"],
        tf.constant(case["lam"]),
        tf.constant([case["cy"], case["cx"]], tf.float32),
    ).numpy()
    assert box.tolist() == case["yl_yh_xl_xh"]
    images = tf.zeros((2, case["height"], case["width"], 1))
    targets = tf.constant([[1.0, 0.0], [0.0, 1.0]])
    _, mixed = mix(images, targets, tf.constant(True), tf.ones(()), box)
    np.testing.assert_allclose(mixed[0, 0], case["corrected_lam"], atol=1e-6)


def reference_targets():
    spec = MIXUP["spec"]
    return smooth_one_hot(MIXED["labels"], spec["classes"], spec["smoothing"])


@pytest.mark.parametrize("index", range(6))
def test_batches_are_mixed_as_in_the_reference(index):
    job = MIXUP["spec"]["batches"][index]
    center = tf.constant([job.get("cy", 0), job.get("cx", 0)], tf.float32)
    share = tf.constant(job["lam"])
    images, targets = mix(
        MIXED["batch"],
        reference_targets(),
        tf.constant(job["kind"] == "cutmix"),
        share,
        cutmix_box(8, 10, share, center),
    )
    np.testing.assert_allclose(images, MIXED[f"mixed{index}"], atol=1e-6)
    np.testing.assert_allclose(targets, MIXED[f"targets{index}"], atol=1e-6)


def test_targets_of_mixup():
    for share, expected in zip(
        MIXED["target_lams"], MIXED["targets_by_lam"], strict=True
    ):
        _, targets = mix(
            MIXED["batch"],
            reference_targets(),
            tf.constant(False),
            tf.constant(share, tf.float32),
            tf.zeros(4),
        )
        np.testing.assert_allclose(targets, expected, atol=1e-6)


def test_draws_of_mixing_are_those_of_the_paper():
    """Of images that hold their number, shares show in the targets."""
    batch, size = 64, 32
    images = tf.tile(
        tf.range(batch, dtype=tf.float32)[:, None, None, None],
        (1, size, size, 1),
    )
    shares, is_cutmix = [], []

    @tf.function
    def mixed(seed):
        return mixup_cutmix(
            images, tf.range(batch), batch, seed, label_smoothing=0.0
        )

    for i in range(1500):
        pixels, targets = (x.numpy() for x in mixed(tf.constant([i, 1])))
        share = targets[np.arange(batch), np.arange(batch)]
        partner = targets[np.arange(batch), np.arange(batch)[::-1]]
        np.testing.assert_allclose(share + partner, 1, atol=1e-6)
        np.testing.assert_allclose(
            pixels.mean(axis=(1, 2, 3)),
            share * np.arange(batch) + partner * np.arange(batch)[::-1],
            atol=1e-3,
        )
        whole = (pixels == np.floor(pixels)).all(axis=(1, 2, 3))
        np.testing.assert_array_equal(share, share[0])
        shares.append(share[0])
        is_cutmix.append(whole[0])
    shares, is_cutmix = np.array(shares), np.array(is_cutmix)
    assert is_cutmix.mean() == pytest.approx(0.5, abs=0.06)
    # Beta(0.8, 0.8) has a variance of 1 / 10.4.
    mixup = shares[~is_cutmix]
    assert mixup.mean() == pytest.approx(0.5, abs=0.04)
    assert mixup.var() == pytest.approx(1 / 10.4, abs=0.012)
    # Of boxes of Beta(1, 1), cut off at rims: simulated with NumPy.
    cutmix = shares[is_cutmix]
    assert cutmix.mean() == pytest.approx(0.69, abs=0.03)
    assert cutmix.var() == pytest.approx(0.0345, abs=0.004)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0, 1), (1, 0), (0, 0)])
def test_an_alpha_of_0_leaves_out_its_mixing(mixup, cutmix):
    """As in timm. Beta(0, 0) mixed all images half and half."""
    images = tf.tile(tf.range(4.0)[:, None, None, None], (1, 8, 8, 3))
    mixed = mixing(Recipe(mixup_alpha=mixup, cutmix_alpha=cutmix), 4)
    found = np.stack([mixed(images, range(4), (0, i))[0] for i in range(4)])
    assert (found == np.floor(found)).all() == (mixup == 0)
    assert (found == found[:, :, :1, :1]).all() == (cutmix == 0)
