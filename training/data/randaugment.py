"""RandAugment with the settings of DeiT and CaiT: `rand-m9-mstd0.5-inc1`.

Two operations are drawn per image, and each is applied with probability 0.5 at
a magnitude from N(9, 0.5), out of 10. All operations are of the "increasing"
kind: a larger magnitude changes more.

Images are float32 with integer values in 0...255, as most of TensorFlow's CPU
kernels are several times faster on float32 than on uint8. Every operation
rounds like Pillow.

References:
    Cubuk et al., RandAugment (https://arxiv.org/abs/1909.13719);
    timm.data.auto_augment (1.0.31) on Pillow 13, recorded in
    tests/reference/recipe/randaugment.npz.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import tensorflow as tf

FILL = (124.0, 116.0, 104.0)  # ImageNet's mean color
OPERATIONS_PER_IMAGE = 2
PROBABILITY = 0.5
MAGNITUDE = (9.0, 0.5)  # mean and deviation of an operation's strength

Change = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
Argument = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def rand_augment(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Applies up to two random operations of `OPERATIONS`.

    Args:
        image: `(height, width, 3)` float32 tensor of integers in 0...255.
        seed: pair of ints. The same seed gives the same operations.

    Returns:
        A tensor like `image`.

    Example:
    >>> rand_augment(tf.zeros((32, 48, 3)), (0, 1)).shape
    TensorShape([32, 48, 3])
    """
    uniform_seed, normal_seed = tf.unstack(tf.random.split(seed, 2))
    draws = tf.random.stateless_uniform((OPERATIONS_PER_IMAGE, 3), uniform_seed)
    levels = tf.random.stateless_normal(
        (OPERATIONS_PER_IMAGE,), normal_seed, *MAGNITUDE
    )
    levels = tf.clip_by_value(levels, 0.0, 10.0)
    for level, (applied, choice, side) in zip(
        tf.unstack(levels), map(tf.unstack, tf.unstack(draws)), strict=True
    ):
        image = tf.cond(
            applied < PROBABILITY,
            partial(
                apply,
                image,
                tf.cast(choice * len(OPERATIONS), tf.int32),
                level,
                tf.where(side < 0.5, 1.0, -1.0),
            ),
            partial(tf.identity, image),
        )
    return image


def apply(
    image: tf.Tensor, operation: tf.Tensor, level: tf.Tensor, sign: tf.Tensor
) -> tf.Tensor:
    """Applies one operation.

    Args:
        image: `(height, width, 3)` float32 tensor of integers in 0...255.
        operation: int32 scalar, the operation's place in `OPERATIONS`.
        level: float scalar in 0...10. Strength.
        sign: 1.0 or -1.0. Direction, for operations that have one.

    Returns:
        A tensor like `image`.
    """
    # In float64: 1 - 0.9 * level would lose a bit, which rounding reveals.
    level, sign = tf.cast(level, tf.float64), tf.cast(sign, tf.float64)

    def branch(change: Change, argument: Argument) -> tf.Tensor:
        return change(image, tf.cast(argument(level, sign), tf.float32))

    return tf.switch_case(
        operation, [partial(branch, *pair) for pair in OPERATIONS.values()]
    )


def auto_contrast(image: tf.Tensor, _: tf.Tensor | None = None) -> tf.Tensor:
    """Stretches each channel to 0...255."""
    low, high = (
        _by_channel(reduce, image) for reduce in (tf.reduce_min, tf.reduce_max)
    )
    # In float64, as Pillow: float32 ends one level off for one pair in five.
    low, high = tf.cast(low, tf.float64), tf.cast(high, tf.float64)
    scale = 255.0 / tf.maximum(high - low, 1.0)
    levels = tf.range(256, dtype=tf.float64)[:, None]
    stretched = tf.where(high > low, levels * scale - low * scale, levels)
    return _look_up(image, _to_8_bits(stretched))


def equalize(image: tf.Tensor, _: tf.Tensor | None = None) -> tf.Tensor:
    """Equalizes the histogram of each channel."""
    places = _places(image)
    counts = tf.math.bincount(places, minlength=768, maxlength=768)
    counts = tf.reshape(counts, (256, 3))
    brightest = tf.cast(_by_channel(tf.reduce_max, image), tf.int32)
    is_brightest = tf.one_hot(brightest, 256, axis=0, dtype=tf.int32)
    step = tf.reduce_sum(counts * (1 - is_brightest), axis=0) // 255
    darker = tf.cumsum(counts, exclusive=True)
    levels = (darker + step // 2) // tf.maximum(step, 1)
    levels = tf.where(step > 0, levels, tf.range(256)[:, None])
    return _look_up(image, tf.minimum(levels, 255))


def _look_up(image: tf.Tensor, levels: tf.Tensor) -> tf.Tensor:
    """Replaces pixels by a `(256, 3)` table of their new values."""
    levels = tf.cast(tf.reshape(levels, [-1]), tf.float32)
    # Single values: tf.gather takes twice as long.
    values = tf.gather_nd(levels, _places(image)[:, None])
    return tf.reshape(values, tf.shape(image))


def _places(image: tf.Tensor) -> tf.Tensor:
    """Where each value stands in a flat `(256, 3)` table, in order."""
    # By rows: broadcasting three channels takes several times as long.
    rows = tf.reshape(image, (tf.shape(image)[0], -1))
    channels = tf.tile(tf.range(3.0), [tf.shape(image)[1]])
    return tf.reshape(tf.cast(3.0 * rows + channels, tf.int32), [-1])


def _by_channel(reduce: Change, image: tf.Tensor) -> tf.Tensor:
    """Reduces each channel: rows first, all of whose values lie in a row."""
    rows = tf.reshape(image, (tf.shape(image)[0], -1))
    return reduce(tf.reshape(reduce(rows, 0), (-1, 3)), 0)


def invert(image: tf.Tensor, _: tf.Tensor | None = None) -> tf.Tensor:
    """Inverts the values."""
    return 255.0 - image


def posterize(image: tf.Tensor, bits: tf.Tensor) -> tf.Tensor:
    """Keeps the highest bits of each value."""
    step = tf.pow(2.0, 8.0 - bits)
    return tf.floor(image / step) * step


def solarize(image: tf.Tensor, threshold: tf.Tensor) -> tf.Tensor:
    """Inverts the values from a threshold on."""
    # |x - 255| is 255 - x. Selecting per pixel takes five times as long.
    return tf.abs(image - 255.0 * tf.cast(image >= threshold, tf.float32))


def solarize_add(image: tf.Tensor, amount: tf.Tensor) -> tf.Tensor:
    """Adds to the values below 128."""
    image += amount * tf.cast(image < 128.0, tf.float32)
    return tf.minimum(image, 255.0)


def color(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Changes the saturation: 0 is gray, 1 the image itself."""
    return _blend(_gray(image), image, factor)


def contrast(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Changes the contrast: 0 is the mean gray, 1 the image itself."""
    mean = tf.reduce_mean(tf.cast(_gray(image), tf.float64))
    mean = tf.cast(tf.floor(mean + 0.5), tf.float32)
    return _blend(mean, image, factor)


def brightness(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Changes the brightness: 0 is black, 1 the image itself."""
    return _to_8_bits(factor * image)


def sharpness(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Changes the sharpness: 0 is a 3 x 3 smoothing, 1 the image itself.

    Border pixels are unchanged.
    """
    kernel = tf.constant([[1.0, 1.0, 1.0], [1.0, 5.0, 1.0], [1.0, 1.0, 1.0]])
    kernel = tf.tile(kernel[:, :, None, None], (1, 1, 3, 1))
    smooth = tf.nn.depthwise_conv2d(image[None], kernel, (1, 1, 1, 1), "VALID")
    smooth = tf.floor(smooth[0] / 13.0 + 0.5)
    border = ((1, 1), (1, 1), (0, 0))
    detail = tf.pad(image[1:-1, 1:-1] - smooth, border)
    return _blend(image - detail, image, factor)


def _gray(image: tf.Tensor) -> tf.Tensor:
    """Luma as Pillow's mode L: ITU-R 601-2 in 16-bit fixed point."""
    red, green, blue = tf.split(image, 3, axis=-1)
    # Below 2^24, which is exact in float32.
    luma = 19595.0 * red + 38470.0 * green + 7471.0 * blue
    return tf.floor((luma + 32768.0) / 65536.0)


def _blend(start: tf.Tensor, end: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    return _to_8_bits(start + factor * (end - start))


def _to_8_bits(values: tf.Tensor) -> tf.Tensor:
    """Truncates to integers in 0...255, like a cast in C."""
    return tf.floor(tf.clip_by_value(values, 0.0, 255.0))


# XLA makes one pass of these. Elsewhere it is slower (tables, convolution), or
# rounds otherwise than Pillow (blending).
_compiled = tf.function(autograph=False, jit_compile=True)


@_compiled
def shear_x(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Shears horizontally: row y reads from x + factor y."""
    return _shear(image, factor, axis=1)


@_compiled
def shear_y(image: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Shears vertically: column x reads from y + factor x."""
    return _shear(image, factor, axis=0)


@_compiled
def translate_x(image: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
    """Shifts horizontally: reads from x + share of the width."""
    return _translate(image, share, axis=1)


@_compiled
def translate_y(image: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
    """Shifts vertically: reads from y + share of the height."""
    return _translate(image, share, axis=0)


def _shear(image: tf.Tensor, factor: tf.Tensor, axis: int) -> tf.Tensor:
    """Shifts each line along the axis."""
    height, width = image.shape[:2]
    rows, columns = tf.range(height)[:, None], tf.range(width)[None]
    lines, along = (rows, columns) if axis else (columns, rows)
    pixels = tf.reshape(image, (-1, 3))

    def read(places: tf.Tensor) -> tf.Tensor:
        row, column = (rows, places) if axis else (places, columns)
        return tf.gather(pixels, row * width + column)

    shifts = factor * (tf.cast(lines, tf.float32) + 0.5)
    return _shift(read, along, shifts, image.shape[axis])


def _translate(image: tf.Tensor, share: tf.Tensor, axis: int) -> tf.Tensor:
    """Shifts all lines along the axis."""
    size = image.shape[axis]
    along = tf.range(size)[None] if axis else tf.range(size)[:, None]

    def read(places: tf.Tensor) -> tf.Tensor:
        return tf.gather(image, tf.reshape(places, [-1]), axis=axis)

    return _shift(read, along, share * size, size)


def _shift(
    read: Callable[[tf.Tensor], tf.Tensor],
    along: tf.Tensor,
    shift: tf.Tensor,
    size: int,
) -> tf.Tensor:
    """Bicubic values beside the pixels of an image; outside is `FILL`.

    Args:
        read: function of places along an axis to the pixels there.
        along: the places of the pixels along the axis.
        shift: by how much farther each is read.
        size: of the image along the axis.
    """
    center = tf.cast(along, tf.float32) + shift + 0.5
    inside = (center >= 0.0) & (center < size)
    whole = tf.floor(shift)
    start = along + tf.cast(whole, tf.int32)
    taps = [
        read(tf.clip_by_value(start + tap, 0, size - 1)) for tap in range(-1, 3)
    ]
    values = _to_8_bits(_cubic(taps, (shift - whole)[..., None]))
    return tf.where(inside[..., None], values, FILL)


@_compiled
def rotate(image: tf.Tensor, degrees: tf.Tensor) -> tf.Tensor:
    """Rotates counterclockwise about the center, bicubic; outside is `FILL`."""
    height, width = image.shape[:2]
    angle = degrees * math.pi / 180
    right = tf.range(float(width))[None] + 0.5 - width / 2
    down = tf.range(float(height))[:, None] + 0.5 - height / 2
    x = tf.cos(angle) * right - tf.sin(angle) * down + width / 2
    y = tf.sin(angle) * right + tf.cos(angle) * down + height / 2
    inside = (x >= 0.0) & (x < width) & (y >= 0.0) & (y < height)
    x, y = x - 0.5, y - 0.5
    left, top = tf.floor(x), tf.floor(y)
    columns, rows = (
        [
            tf.clip_by_value(tf.cast(start, tf.int32) + tap, 0, size - 1)
            for tap in range(-1, 3)
        ]
        for start, size in ((left, width), (top, height))
    )
    pixels = tf.reshape(image, (-1, 3))
    right, down = (x - left)[..., None], (y - top)[..., None]
    filtered = [
        _cubic([tf.gather(pixels, row * width + c) for c in columns], right)
        for row in rows
    ]
    values = _to_8_bits(_cubic(filtered, down))
    return tf.where(inside[..., None], values, FILL)


def _cubic(taps: Sequence[tf.Tensor], t: tf.Tensor) -> tf.Tensor:
    """Keys' cubic of Pillow's transforms (a = -1), between the middle taps.

    In this form it is exact where the image is flat.

    Args:
        taps: four neighboring values.
        t: place between the second and the third, in 0...1.
    """
    before, start, end, after = taps
    cube = start - before + after - end
    square = before - start - cube
    return start + t * (end - before + t * (square + t * cube))


def _no_argument(level: tf.Tensor, sign: tf.Tensor) -> tf.Tensor:
    return level


def _enhancement(level: tf.Tensor, sign: tf.Tensor) -> tf.Tensor:
    return tf.maximum(1.0 + sign * (level / 10.0 * 0.9), 0.1)


# By name: the change, a function of image and argument; and its argument, a
# function of level in 0...10 and sign.
OPERATIONS: dict[str, tuple[Change, Argument]] = {
    "AutoContrast": (auto_contrast, _no_argument),
    "Equalize": (equalize, _no_argument),
    "Invert": (invert, _no_argument),
    "Rotate": (rotate, lambda level, sign: sign * 3.0 * level),
    "PosterizeIncreasing": (
        posterize,
        lambda level, sign: 4.0 - tf.floor(level / 10.0 * 4.0),
    ),
    "SolarizeIncreasing": (
        solarize,
        lambda level, sign: 256.0 - tf.floor(level / 10.0 * 256.0),
    ),
    "SolarizeAdd": (
        solarize_add,
        lambda level, sign: tf.floor(level / 10.0 * 110.0),
    ),
    "ColorIncreasing": (color, _enhancement),
    "ContrastIncreasing": (contrast, _enhancement),
    "BrightnessIncreasing": (brightness, _enhancement),
    "SharpnessIncreasing": (sharpness, _enhancement),
    "ShearX": (shear_x, lambda level, sign: sign * 0.03 * level),
    "ShearY": (shear_y, lambda level, sign: sign * 0.03 * level),
    "TranslateXRel": (translate_x, lambda level, sign: sign * 0.045 * level),
    "TranslateYRel": (translate_y, lambda level, sign: sign * 0.045 * level),
}
