"""Every operation of RandAugment over its whole domain, beside Pillow's."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps

from training.data import randaugment
from training.data.randaugment import OPERATIONS, apply

LEVELS = np.arange(256, dtype="uint8")
# All values that an image can have, as one gray image.
ALL = np.repeat(LEVELS.reshape(16, 16, 1), 3, axis=2)
# Strengths in 0...10: whole ones, and some of those between.
STRENGTHS = np.concatenate(
    [np.arange(11.0), np.random.default_rng(0).uniform(0, 10, 90)]
).astype("float32")
ENHANCEMENTS = {
    "ColorIncreasing": ImageEnhance.Color,
    "ContrastIncreasing": ImageEnhance.Contrast,
    "BrightnessIncreasing": ImageEnhance.Brightness,
    "SharpnessIncreasing": ImageEnhance.Sharpness,
}


def argument(name: str, strength: float, sign: float = 1.0) -> float:
    """The argument of an operation, as Pillow is given it."""
    level, sign = (tf.constant(x, tf.float64) for x in (strength, sign))
    return float(OPERATIONS[name][1](level, sign))


@pytest.fixture(scope="module")
def change():
    """Applies an operation by its name, in a graph."""
    graph = tf.function(apply)

    def change(name, image, strength, sign=1.0):
        changed = graph(
            tf.constant(image, tf.float32),
            tf.constant(list(OPERATIONS).index(name)),
            tf.constant(strength, tf.float32),
            tf.constant(sign),
        )
        return changed.numpy()

    return change


def noise(seed, low=0, high=256):
    """Pixels of 23 x 31 with three different channels."""
    rng = np.random.default_rng(seed)
    pixels = rng.beta(0.4, 0.6, (23, 31, 3)) * (high - low) + low
    return pixels.astype("uint8")


def test_auto_contrast_of_every_darkest_and_brightest_value():
    """Three pairs at a time: one in each channel."""
    pairs = [(low, high) for low in range(256) for high in range(low, 256)]
    pairs += pairs[: -len(pairs) % 3]
    low, high = np.array(pairs, "uint8").reshape(-1, 3, 2).transpose(2, 0, 1)
    images = LEVELS[:, None].clip(low[:, None, None], high[:, None, None])
    stretch = tf.function(
        lambda images: tf.map_fn(randaugment.auto_contrast, images)
    )
    found = stretch(tf.constant(images, tf.float32)).numpy()
    for image, ours in zip(images, found, strict=True):
        expected = ImageOps.autocontrast(Image.fromarray(image))
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize(
    "name",
    ["Invert", "PosterizeIncreasing", "SolarizeIncreasing", "SolarizeAdd"],
)
def test_every_value_and_argument(name, change):
    for strength in np.linspace(0, 10, 257, dtype="float32"):
        number = argument(name, strength)
        if name == "Invert":
            expected = ImageOps.invert(Image.fromarray(ALL))
        elif name == "PosterizeIncreasing":
            # Older Pillow keeps no bits, Pillow 13 refuses to.
            expected = 0 * ALL
            if number >= 1:
                expected = ImageOps.posterize(Image.fromarray(ALL), int(number))
        elif name == "SolarizeIncreasing":
            expected = ImageOps.solarize(Image.fromarray(ALL), int(number))
        else:  # of timm, by a table
            table = [
                min(v + int(number), 255) if v < 128 else v
                for v in LEVELS.tolist()
            ]
            expected = Image.fromarray(ALL).point(3 * table)
        found = change(name, ALL, strength)
        np.testing.assert_array_equal(found, expected, f"{strength}")


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_every_pair_is_blended(sign):
    """What color, contrast, brightness and sharpness end in."""
    start, end = (np.ascontiguousarray(x) for x in np.meshgrid(LEVELS, LEVELS))
    blend = tf.function(randaugment._blend)
    for strength in STRENGTHS:
        factor = argument("ColorIncreasing", strength, sign)
        expected = Image.blend(
            Image.fromarray(start), Image.fromarray(end), factor
        )
        found = blend(
            tf.constant(start, tf.float32),
            tf.constant(end, tf.float32),
            tf.constant(factor, tf.float32),
        )
        np.testing.assert_array_equal(found, expected, f"{strength}")


def test_gray_of_every_color():
    green, blue = (np.ascontiguousarray(x) for x in np.meshgrid(LEVELS, LEVELS))
    gray = tf.function(randaugment._gray)
    for red in LEVELS:
        image = np.stack([np.full_like(green, red), green, blue], axis=-1)
        expected = np.asarray(Image.fromarray(image).convert("L"))
        found = gray(tf.constant(image, tf.float32))[..., 0]
        np.testing.assert_array_equal(found, expected, f"{red}")


@pytest.mark.parametrize("name", ENHANCEMENTS)
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_enhancements_of_images(name, sign, change):
    for seed, strength in enumerate(STRENGTHS):
        image = noise(seed, seed % 50, 256 - seed % 70)
        expected = ENHANCEMENTS[name](Image.fromarray(image)).enhance(
            argument(name, strength, sign)
        )
        found = change(name, image, strength, sign)
        np.testing.assert_array_equal(found, expected, f"{strength}")


def test_equalized_histograms(change):
    images = [noise(s, s % 200, s % 200 + 2 + s % 50) for s in range(200)]
    images += [ALL, np.full((5, 7, 3), 9, "uint8")]
    for number, image in enumerate(images):
        expected = ImageOps.equalize(Image.fromarray(image))
        found = change("Equalize", image, 0)
        np.testing.assert_array_equal(found, expected, f"image {number}")
