"""Resizing and cropping in the graph, as Pillow resizes."""

import tensorflow as tf

from keras_cait.preprocessing import check_size, geometry

# Output pixels that are computed together, and values of a strip of rows.
BLOCK, STRIP = 16, 2**20


def resize_and_crop_in_graph(
    image: tf.Tensor, size: int | tuple[int, int], crop_ratio: float = 1.0
) -> tf.Tensor:
    """`keras_cait.preprocessing.resize_and_crop` in a TensorFlow graph.

    The pixels are equal. Only the rows and columns that the crop keeps are
    computed, from strips of the image, so that time and memory are in
    proportion to the pixels of the image, whatever its shape.

    Args:
        image: uint8 tensor `(height, width, channels)`, of a size that may
            only be known when the graph runs.
        size: height and width in pixels, or an int for both.
        crop_ratio: float in (0, 1]. Share of the shorter side that is kept.

    Returns:
        float32 tensor `(size, size, channels)`, whole numbers in 0...255.

    Raises:
        ValueError: an argument is out of its range.

    Example:
    >>> image = tf.zeros((375, 500, 3), tf.uint8)
    >>> resize_and_crop_in_graph(image, 224).shape
    TensorShape([224, 224, 3])

    Reference: Pillow's `Image.resize`, which rounds weights to 22 bits, and
    the image to 8 bits after each of its two passes.
    """
    size = check_size(size)
    image = tf.cast(image, tf.uint8)
    height, width = tf.unstack(tf.shape(image, tf.int64)[:2])
    resized_height, resized_width, top, left = geometry(
        height, width, size, crop_ratio, tf.maximum
    )
    columns, column_weights = _taps(width, resized_width, left, size[1])
    rows, row_weights = _taps(height, resized_height, top, size[0])
    first_row, first_column = tf.reduce_min(rows), tf.reduce_min(columns)
    image = image[
        first_row : tf.reduce_max(rows) + 1,
        first_column : tf.reduce_max(columns) + 1,
    ]
    image = _resize_rows(image, columns - first_column, column_weights, size[1])
    image = tf.transpose(image, (1, 0, 2))
    image = _resize_rows(image, rows - first_row, row_weights, size[0])
    image = tf.cast(tf.transpose(image, (1, 0, 2)), tf.float32)
    return tf.ensure_shape(image, (*size, image.shape[-1]))


def _taps(size, new_size, start, count):
    """Weights of one axis, for output pixels from `start` on, in blocks.

    Returns:
        int64 `(blocks, taps)`, the input pixels of each block, and float32
        `(blocks, 2 * BLOCK, taps)`, their weights, each in two parts.
    """
    double = tf.float64
    scale = tf.cast(size, double) / tf.cast(new_size, double)
    widened = tf.maximum(scale, 1.0)  # shrinking averages: the antialiasing
    blocks = -(-count // BLOCK)
    taps = (BLOCK - 1) * scale + 4 * widened
    taps = tf.minimum(size, tf.cast(tf.math.ceil(taps), tf.int64) + 2)
    outputs = tf.minimum(tf.range(blocks * BLOCK, dtype=tf.int64), count - 1)
    centers = (tf.cast(start + outputs, double) + 0.5) * scale
    centers = tf.reshape(centers, (blocks, BLOCK, 1))
    first = tf.cast(tf.floor(centers[:, 0] - 2 * widened), tf.int64)
    pixels = tf.clip_by_value(first, 0, size - taps) + tf.range(taps)
    x = tf.abs(tf.cast(pixels, double)[:, None] + 0.5 - centers) / widened
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
    weights = tf.where(x < 1.0, near, tf.where(x < 2.0, far, 0.0))
    weights /= tf.reduce_sum(weights, -1, keepdims=True)
    # Multiples of 2^-22. In two parts, float32 multiplies and adds exactly.
    weights = tf.round(weights * 2.0**22)
    coarse = tf.round(weights * 2.0**-11) * 2.0**11
    parts = tf.concat([coarse, weights - coarse], axis=1) * 2.0**-22
    return pixels, tf.cast(parts, tf.float32)


def _resize_rows(image, pixels, weights, count):
    """Resizes each row of a uint8 image to `count` pixels."""
    height = tf.shape(image)[0]
    blocks, channels = weights.shape[0], tf.shape(image)[2]
    rows = tf.maximum(STRIP // (tf.size(pixels) * channels), 1)
    strips = -(-height // rows)
    pixels = tf.reshape(pixels, [-1])

    def resize(index, done):
        strip = image[index * rows : (index + 1) * rows]
        shape = (blocks * BLOCK, tf.shape(strip)[0], channels)
        strip = tf.gather(tf.transpose(strip, (1, 0, 2)), pixels)
        strip = tf.reshape(strip, (blocks, tf.shape(weights)[2], -1))
        coarse, fine = tf.split(
            tf.matmul(weights, tf.cast(strip, tf.float32)), 2, axis=1
        )
        strip = tf.cast(coarse, tf.float64) + tf.cast(fine, tf.float64)
        strip = tf.clip_by_value(tf.floor(strip + 0.5), 0.0, 255.0)
        strip = tf.reshape(tf.cast(strip, tf.uint8), shape)[:count]
        return index + 1, done.write(index, tf.transpose(strip, (1, 0, 2)))

    shape = (None, count, image.shape[2])
    done = tf.TensorArray(
        tf.uint8, strips, infer_shape=False, element_shape=shape
    )
    _, done = tf.while_loop(
        lambda index, done: index < strips,
        resize,
        (0, done),
        parallel_iterations=1,
    )
    return done.concat()
