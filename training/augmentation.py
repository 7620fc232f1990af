"""Augmentation: pure functions of (image, seed), in TensorFlow ops."""

import math

import tensorflow as tf


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
