"""Augmentation of single pictures: pure functions of (image, seed).

What a picture becomes depends on its seed alone, and so not on the batch, the
device or the number of workers that it is processed by. All are TensorFlow ops,
for `tf.data.Dataset.map`.
"""

import math

import tensorflow as tf

from keras_cait.decoding import SIGNATURES, decode_image
from keras_cait.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from training.data.randaugment import brightness, color, contrast, rand_augment

TRIES = 10  # at a rectangle that fits, of random crops and erasing


def deit_augmentation(picture, seed, size):
    """The augmentation of DeiT and CaiT on ImageNet, but for Mixup and CutMix.

    That is a random-resized crop, a flip, RandAugment and random erasing, each
    with its default arguments. Colour jitter is not part of it: the reference
    leaves it out where it applies RandAugment.

    Args:
        picture: scalar string tensor, an encoded picture; or
            `(height, width, 3)` tensor of RGB in 0...255.
        seed: pair of ints. The same seed gives the same picture.
        size: int. Height and width of the result in pixels.

    Returns:
        `(size, size, 3)` float32 tensor of RGB in 0...255; noise in erased
        pixels goes beyond.

    Raises:
        tf.errors.InvalidArgumentError: the picture cannot be decoded.

    Example:
    >>> picture = tf.io.encode_jpeg(tf.zeros((375, 500, 3), tf.uint8))
    >>> deit_augmentation(picture, (0, 1), 224).shape
    TensorShape([224, 224, 3])

    References:
        Touvron et al., DeiT (https://arxiv.org/abs/2012.12877), table 9.
    """
    crop_seed, flip_seed, change_seed, erase_seed = tf.unstack(
        tf.random.split(seed, 4)
    )
    image = random_resized_crop(picture, crop_seed, size)
    image = random_flip(image, flip_seed)
    image = rand_augment(image, change_seed)
    return random_erasing(image, erase_seed)


def random_resized_crop(
    picture, seed, size, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)
):
    """Cuts out a random part of a picture and resizes it to a square.

    The part is drawn as torchvision's `RandomResizedCrop` does. Of a JPEG only
    that part is decoded, to the pixels that Pillow decodes. Resizing is
    antialiased bicubic. Pillow rounds to 8 bits between its two passes, which
    moves 10 to 18 % of the values by one level and, where a part is enlarged,
    single ones at hard edges by up to 7.

    Args:
        picture: scalar string tensor, an encoded JPEG, PNG, GIF or BMP; or
            `(height, width, 3)` tensor of RGB in 0...255.
        seed: pair of ints. The same seed gives the same part.
        size: int. Height and width of the result in pixels.
        scale: pair of floats in 0...1. Range of the part's share of the area.
        ratio: pair of floats. Range of the part's width / height.

    Returns:
        `(size, size, 3)` float32 tensor of whole numbers in 0...255.

    Raises:
        tf.errors.InvalidArgumentError: the picture cannot be decoded.

    Example:
    >>> image = tf.fill((40, 30, 3), 7)
    >>> random_resized_crop(image, (0, 1), 2).numpy()[0].tolist()
    [[7.0, 7.0, 7.0], [7.0, 7.0, 7.0]]
    """
    draws = tf.random.stateless_uniform((TRIES, 4), seed)

    def box(shape):
        return crop_box(shape[0], shape[1], draws, scale, ratio)

    def decode_part():
        part = box(tf.image.extract_jpeg_shape(picture))
        return tf.image.decode_and_crop_jpeg(
            picture, part, channels=3, dct_method="INTEGER_ACCURATE"
        )

    def decode_whole():
        image = decode_image(picture)
        return _cut(image, box(tf.shape(image)))

    if picture.dtype == tf.string:
        is_jpeg = tf.strings.substr(picture, 0, 3) == SIGNATURES[0]
        part = tf.cond(is_jpeg, decode_part, decode_whole)
    else:
        part = _cut(picture, box(tf.shape(picture)))
    part = tf.ensure_shape(part, (None, None, 3))
    resized = tf.image.resize(part, (size, size), "bicubic", antialias=True)
    return tf.clip_by_value(tf.round(resized), 0.0, 255.0)


def crop_box(height, width, draws, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)):
    """The part of a picture that `random_resized_crop` cuts out.

    Args:
        height, width: int scalars. Size of the picture in pixels.
        draws: `(tries, 4)` float32 in [0, 1), one row for each try: area,
            ratio, top, left.
        scale: pair of floats in 0...1. Range of the part's share of the area.
        ratio: pair of floats. Range of the part's width / height.

    Returns:
        int32 tensor `[top, left, height, width]`: the first try that fits into
        the picture, else the largest centred part within the ratios.
    """
    found, box = _first_fit(height, width, draws, scale, ratio, (height, width))
    h, w = tf.cast(height, tf.float32), tf.cast(width, tf.float32)
    tall = tf.minimum(h, tf.round(w / ratio[0]))
    wide = tf.minimum(w, tf.round(h * ratio[1]))
    part = tf.cast(tf.stack([tall, wide]), tf.int32)
    corner = (tf.stack([height, width]) - part) // 2
    return tf.where(found, box, tf.concat([corner, part], axis=0))


def _first_fit(height, width, draws, scale, ratio, largest):
    """The first of the tried boxes within the largest size, and if any is."""
    area, ratio_draw, top, left = tf.unstack(draws, axis=1)
    size = tf.cast(tf.stack([height, width]), tf.float32)
    area = (scale[0] + (scale[1] - scale[0]) * area) * size[0] * size[1]
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = tf.exp(low + (high - low) * ratio_draw)
    parts = tf.round(
        tf.stack([tf.sqrt(area / aspect), tf.sqrt(area * aspect)], axis=1)
    )
    fits = tf.reduce_all(parts <= tf.cast(tf.stack(largest), tf.float32), 1)
    corners = tf.floor((size - parts + 1.0) * tf.stack([top, left], axis=1))
    boxes = tf.cast(tf.concat([corners, parts], axis=1), tf.int32)
    return tf.reduce_any(fits), boxes[tf.argmax(fits)]


def _cut(image, box):
    return tf.slice(
        image, tf.concat([box[:2], [0]], 0), tf.concat([box[2:], [3]], 0)
    )


def random_flip(image, seed):
    """Swaps left and right with probability 0.5.

    Args:
        image: `(height, width, channels)` tensor.
        seed: pair of ints. The same seed gives the same side.

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


def color_jitter(image, seed, strength=0.4):
    """Changes brightness, contrast and saturation, in random order.

    The reference applies it only where RandAugment is off.

    Args:
        image: `(height, width, 3)` float32 tensor of whole numbers in 0...255.
        seed: pair of ints. The same seed gives the same change.
        strength: float in 0...1. Each factor is uniform in 1 - strength...
            1 + strength.

    Returns:
        A tensor like `image`.

    Example:
    >>> color_jitter(tf.zeros((1, 1, 3)), (0, 1)).numpy().tolist()
    [[[0.0, 0.0, 0.0]]]
    """
    factor_seed, order_seed = tf.unstack(tf.random.split(seed, 2))
    factors = tf.random.stateless_uniform(
        (3,), factor_seed, 1.0 - strength, 1.0 + strength
    )
    order = tf.argsort(tf.random.stateless_uniform((3,), order_seed))
    for change in tf.unstack(order):
        image = tf.switch_case(
            change,
            [
                lambda image=image: brightness(image, factors[0]),
                lambda image=image: contrast(image, factors[1]),
                lambda image=image: color(image, factors[2]),
            ],
        )
    return image


def random_erasing(image, seed, probability=0.25):
    """Replaces a random rectangle by noise.

    The noise is that of the reference's mode `pixel`: standard normal for each
    pixel and channel of the normalised image. Here, before normalisation, it
    has ImageNet's mean and standard deviation and is neither rounded nor cut
    off.

    Args:
        image: `(height, width, 3)` float32 tensor of RGB in 0...255.
        seed: pair of ints. The same seed gives the same rectangle and noise.
        probability: float in 0...1. Share of pictures that it is done to.

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

    def erase():
        top, left, rows, columns = tf.unstack(box)
        noise = tf.random.stateless_normal((rows, columns, 3), noise_seed)
        noise = 255.0 * (noise * IMAGENET_STD + IMAGENET_MEAN)
        around = (
            (top, height - top - rows),
            (left, width - left - columns),
            (0, 0),
        )
        erased = tf.pad(tf.ones((rows, columns, 1), tf.bool), around)
        return tf.where(erased, tf.pad(noise, around), image)

    return tf.cond(draws[0] < probability, erase, lambda: image)


def erasing_box(height, width, draws):
    """The rectangle that `random_erasing` replaces.

    Args:
        height, width: int scalars. Size of the picture in pixels.
        draws: `(tries, 4)` float32 in [0, 1), one row for each try: area,
            ratio, top, left.

    Returns:
        int32 tensor `[top, left, height, width]`: the first try that is smaller
        than the picture both ways, else an empty one. Its area is a share of
        0.02...1/3 of the picture, its height / width 0.3...10/3.
    """
    # The ranges of height / width, as the order of the draws has it.
    found, box = _first_fit(
        height,
        width,
        draws,
        (0.02, 1 / 3),
        (10 / 3, 3 / 10),
        (height - 1, width - 1),
    )
    return tf.where(found, box, 0)


def random_affine(image, seed, max_rotation, max_zoom, max_shift):
    """Rotates, scales and shifts a picture at random, about its centre.

    Args:
        image: `(height, width, channels)` tensor in 0...255. What comes in
            from outside the picture is black.
        seed: pair of int64. The same seed gives the same change.
        max_rotation: float. Largest rotation in degrees, either way.
        max_zoom: float. Largest change of scale, as a share of the size.
        max_shift: float. Largest shift, as a share of the size.

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
