"""Augmentation of single images: pure functions of (image, seed).

An image's augmentation depends only on its seed, not on its batch, the device
or the number of workers. All functions are made of TensorFlow ops, for
`tf.data.Dataset.map`.
"""

import math
from functools import partial

import tensorflow as tf

from keras_cait.decoding import decode_crop
from keras_cait.preprocessing import IMAGENET_MEAN, IMAGENET_STD

TRIES = 10  # to find a rectangle that fits, in random crops and erasing


def random_resized_crop(
    image: tf.Tensor,
    seed: tf.Tensor,
    size: int,
) -> tf.Tensor:
    """Crops a random part of an image and resizes it to a square.

    The crop is drawn as in torchvision's `RandomResizedCrop`. Of a JPEG, only
    the crop is decoded, to the same pixels as in Pillow. Resizing is bicubic
    with antialiasing. Pillow rounds to 8 bits between its two passes, which
    moves 10 to 18 % of the values by one level and, at hard edges, single
    values by more: by up to 30 in enlarged noise of black and white.

    Args:
        image: scalar string tensor, an encoded JPEG, PNG, GIF or BMP; or
            `(height, width, 3)` tensor, RGB in 0...255.
        seed: pair of ints. The same seed gives the same crop.
        size: height and width of the result in pixels.

    Returns:
        `(size, size, 3)` float32 tensor of integers in 0...255.

    Raises:
        tf.errors.InvalidArgumentError: the image cannot be decoded.

    Example:
    >>> image = tf.fill((40, 30, 3), 7)
    >>> random_resized_crop(image, (0, 1), 2).numpy()[0].tolist()
    [[7.0, 7.0, 7.0], [7.0, 7.0, 7.0]]
    """
    draws = tf.random.stateless_uniform((TRIES, 4), seed)
    box = partial(crop_box, draws=draws)
    if image.dtype == tf.string:
        crop = decode_crop(image, box)
    else:
        crop = _crop(image, box(*tf.unstack(tf.shape(image)[:2])))
        crop = tf.ensure_shape(crop, (None, None, 3))
    return tf.clip_by_value(tf.round(_resize(crop, size)), 0.0, 255.0)


def _resize(image: tf.Tensor, size: int) -> tf.Tensor:
    """`tf.image.resize`, bicubic with antialiasing, in half the time.

    The kernel adds whole rows of values, but columns pixel by pixel. Columns
    are therefore turned into rows; the pixels are equal.
    """
    height, width = tf.unstack(tf.shape(image)[:2])
    image = _resize_rows(tf.reshape(image, (height, -1)), size)
    image = _transpose(tf.reshape(image, (size, width, 3)))
    image = _resize_rows(tf.reshape(image, (width, -1)), size)
    return _transpose(tf.reshape(image, (size, size, 3)))


def _resize_rows(rows: tf.Tensor, size: int) -> tf.Tensor:
    count = tf.shape(rows)[0]
    scale = tf.constant(size, tf.float32) / tf.cast(count, tf.float32)
    return tf.raw_ops.ScaleAndTranslate(
        images=rows[None, :, None],
        size=(size, 1),
        scale=tf.stack([scale, 1.0]),
        translation=(0.0, 0.0),
        kernel_type="keyscubic",
    )[0, :, 0]


def _transpose(image: tf.Tensor) -> tf.Tensor:
    return tf.transpose(image, (1, 0, 2))


def crop_box(
    height: tf.Tensor, width: tf.Tensor, draws: tf.Tensor
) -> tf.Tensor:
    """The rectangle that `random_resized_crop` crops.

    Args:
        height, width: int scalars. Size of the image in pixels.
        draws: `(tries, 4)` float32 tensor in [0, 1), one row per try: area,
            ratio, top, left.

    Returns:
        int32 tensor `[top, left, height, width]`: the first try that fits into
        the image, otherwise the largest centered crop within the ratios. Its
        area is 0.08...1 of the image, its width / height 3/4...4/3.

    Example:
    >>> draws = tf.fill((10, 4), 0.5)
    >>> crop_box(40, 30, draws).numpy().tolist()
    [8, 3, 25, 25]
    """
    ratio = (3 / 4, 4 / 3)
    fits, box = _first_fit(
        height, width, draws, (0.08, 1.0), ratio, (height, width)
    )
    h, w = tf.cast(height, tf.float32), tf.cast(width, tf.float32)
    tallest = tf.minimum(h, tf.round(w / ratio[0]))
    widest = tf.minimum(w, tf.round(h * ratio[1]))
    sides = tf.cast(tf.stack([tallest, widest]), tf.int32)
    corner = (tf.stack([height, width]) - sides) // 2
    return tf.where(fits, box, tf.concat([corner, sides], axis=0))


def _first_fit(
    height: tf.Tensor,
    width: tf.Tensor,
    draws: tf.Tensor,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    largest: tuple[tf.Tensor, tf.Tensor],
) -> tuple[tf.Tensor, tf.Tensor]:
    """Whether any of the drawn boxes fits into a size, and the first one."""
    area, ratio_draw, top, left = tf.unstack(draws, axis=1)
    size = tf.cast(tf.stack([height, width]), tf.float32)
    area = (scale[0] + (scale[1] - scale[0]) * area) * size[0] * size[1]
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = tf.exp(low + (high - low) * ratio_draw)
    sides = tf.round(
        tf.stack([tf.sqrt(area / aspect), tf.sqrt(area * aspect)], axis=1)
    )
    # A side of an image of a few pixels may be rounded to 0.
    largest_sides = tf.cast(tf.stack(largest), tf.float32)
    fits = tf.reduce_all((sides > 0.0) & (sides <= largest_sides), axis=1)
    corners = tf.floor((size - sides + 1.0) * tf.stack([top, left], axis=1))
    boxes = tf.cast(tf.concat([corners, sides], axis=1), tf.int32)
    return tf.reduce_any(fits), boxes[tf.argmax(fits)]


def _crop(image: tf.Tensor, box: tf.Tensor) -> tf.Tensor:
    return tf.slice(
        image, tf.concat([box[:2], [0]], 0), tf.concat([box[2:], [3]], 0)
    )


def random_flip(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Flips an image left to right with probability 0.5.

    Args:
        image: `(height, width, channels)` tensor.
        seed: pair of ints. The same seed gives the same result.

    Returns:
        A tensor like `image`.

    Example:
    >>> image = tf.constant([[[1], [2]]])
    >>> sides = [random_flip(image, (0, i))[0, 0, 0] for i in range(20)]
    >>> sorted({int(side) for side in sides})
    [1, 2]
    """
    # tf.reverse: slicing with a step of -1 takes nine times as long.
    return tf.cond(
        tf.random.stateless_uniform((), seed) < 0.5,
        lambda: tf.reverse(image, [1]),
        lambda: image,
    )


def random_erasing(
    image: tf.Tensor, seed: tf.Tensor, probability: float = 0.25
) -> tf.Tensor:
    """Replaces a random rectangle by noise.

    As in the reference's mode `pixel`, the noise is standard normal for each
    pixel and channel of the normalized image. Here, before normalization, it
    has ImageNet's mean and standard deviation, and is neither rounded nor
    clipped.

    Args:
        image: `(height, width, 3)` float32 tensor, RGB in 0...255.
        seed: pair of ints. The same seed gives the same rectangle and noise.
        probability: probability of erasing, in 0...1.

    Returns:
        A tensor like `image`.

    Example:
    >>> image = tf.zeros((8, 8, 3))
    >>> erased = random_erasing(image, (0, 2), probability=1.0)
    >>> bool(tf.reduce_any(erased > 0.0))
    True

    References:
        Zhong et al., Random Erasing (https://arxiv.org/abs/1708.04896).
    """
    height, width = tf.unstack(tf.shape(image)[:2])
    draw_seed, noise_seed = tf.unstack(tf.random.split(seed, 2))
    draws = tf.random.stateless_uniform((1 + TRIES * 4,), draw_seed)
    box = erasing_box(height, width, tf.reshape(draws[1:], (TRIES, 4)))

    def erase() -> tf.Tensor:
        top, left, rows, columns = tf.unstack(box)
        noise = tf.random.stateless_normal((rows, columns, 3), noise_seed)
        noise = 255.0 * (noise * IMAGENET_STD + IMAGENET_MEAN)
        return paste(image, noise, top, left)

    return tf.cond(draws[0] < probability, erase, lambda: image)


def paste(
    image: tf.Tensor, patch: tf.Tensor, top: tf.Tensor, left: tf.Tensor
) -> tf.Tensor:
    """Replaces a rectangle of an image.

    Args:
        image: `(height, width, channels)` tensor.
        patch: `(rows, columns, channels)` tensor that fits into it.
        top, left: int scalars. Corner of the rectangle.

    Returns:
        A tensor like `image`.

    Example:
    >>> pasted = paste(tf.zeros((2, 3, 1)), tf.ones((1, 2, 1)), 1, 1)
    >>> pasted[..., 0].numpy().tolist()
    [[0.0, 0.0, 0.0], [0.0, 1.0, 1.0]]
    """
    rows, columns = tf.unstack(tf.shape(patch)[:2])
    middle = image[top : top + rows]
    middle = tf.concat(
        [middle[:, :left], patch, middle[:, left + columns :]], axis=1
    )
    pasted = tf.concat([image[:top], middle, image[top + rows :]], axis=0)
    return tf.ensure_shape(pasted, image.shape)


def erasing_box(
    height: tf.Tensor, width: tf.Tensor, draws: tf.Tensor
) -> tf.Tensor:
    """The rectangle that `random_erasing` replaces.

    Args:
        height, width: int scalars. Size of the image in pixels.
        draws: `(tries, 4)` float32 tensor in [0, 1), one row per try: area,
            ratio, top, left.

    Returns:
        int32 tensor `[top, left, height, width]`: the first try that is smaller
        than the image in both directions, otherwise an empty rectangle. Its
        area is 0.02...1/3 of the image, its height / width 0.3...10/3.

    Example:
    >>> draws = tf.fill((10, 4), 0.5)
    >>> erasing_box(16, 80, draws).numpy().tolist()
    [1, 33, 15, 15]
    >>> erasing_box(15, 80, draws).numpy().tolist()
    [0, 0, 0, 0]
    """
    # Ratios of height / width, which the draws order from high to low.
    fits, box = _first_fit(
        height,
        width,
        draws,
        (0.02, 1 / 3),
        (10 / 3, 3 / 10),
        (height - 1, width - 1),
    )
    return tf.where(fits, box, 0)


def random_affine(
    image: tf.Tensor,
    seed: tf.Tensor,
    max_rotation: float,
    max_zoom: float,
    max_shift: float,
) -> tf.Tensor:
    """Rotates, scales and shifts an image at random, about its center.

    Args:
        image: `(height, width, channels)` tensor in 0...255. Pixels from
            outside the image are black.
        seed: pair of int64. The same seed gives the same transform.
        max_rotation: largest rotation in degrees, in either direction.
        max_zoom: largest change of scale, as a share of the size.
        max_shift: largest shift, as a share of the size.

    Returns:
        A float32 tensor of the same shape, in 0...255.

    Example:
    >>> image = tf.ones((28, 28, 3), tf.uint8)
    >>> random_affine(image, (0, 1), 0.0, 0.0, 0.0).numpy().mean().item()
    1.0
    """
    height, width = image.shape[:2]
    angle, zoom, down, right = tf.unstack(
        tf.random.stateless_uniform((4,), seed, -1.0, 1.0)
    )
    angle *= max_rotation * math.pi / 180
    zoom = 1.0 + zoom * max_zoom
    cosine, sine = tf.cos(angle) * zoom, tf.sin(angle) * zoom
    # Output pixel (x, y) reads input pixel (a x + b y + c, d x + e y + f).
    x, y = (width - 1) / 2, (height - 1) / 2
    c = x - cosine * x + sine * y + right * max_shift * width
    f = y - sine * x - cosine * y + down * max_shift * height
    transform = tf.stack([cosine, -sine, c, sine, cosine, f, 0.0, 0.0])
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.cast(image[None], tf.float32),
        transforms=transform[None],
        output_shape=(height, width),
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )[0]
