"""BMP in the graph.

A BMP consists of a file header (14 bytes), a header, a palette and rows from
the bottom up. Reference: Microsoft, bitmap header types.
"""

import tensorflow as tf

from keras_cait.decoding.reading import numbers, part

BMP_HEADERS = (40, 52, 56, 108, 124)  # lengths: version 3, 2 extensions, 4, 5
BITFIELDS = 3
BGR_MASKS = (0xFF0000, 0xFF00, 0xFF)
REFUSED = "The BMP is truncated, or of an unsupported kind."


def read_header(encoded: tf.Tensor) -> tf.Tensor:
    """Reads int64 `[height, width, orientation]`, as they are stored."""
    width, height = tf.unstack(
        tf.cast(numbers(encoded, 18, 2, tf.int32, True), tf.int64)
    )
    length = numbers(encoded, 14, 1, tf.int32, True)[0]
    check = tf.debugging.Assert(tf.reduce_any(length == BMP_HEADERS), [REFUSED])
    with tf.control_dependencies([check]):
        return tf.stack([tf.abs(height), width, 1])


def decode(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes 8 bits with a palette, 24 and 32 bits.

    TensorFlow ignores compression, masks and palettes.
    """
    offset, header = tf.unstack(numbers(encoded, 10, 2, tf.int32, True))
    compression = numbers(encoded, 30, 1, tf.int32, True)[0]
    colors = numbers(encoded, 46, 1, tf.int32, True)[0]
    colors = tf.where(colors == 0, 256, colors)
    bits = numbers(encoded, 28, 1, tf.uint16, True)[0]
    bits = tf.cast(bits, tf.int64)
    height, width, _ = tf.unstack(read_header(encoded))
    is_bgr = tf.cond(
        compression == BITFIELDS,
        lambda: (
            (bits == 32)
            & tf.reduce_all(
                numbers(encoded, 54, 3, tf.int32, True) == BGR_MASKS
            )
        ),
        lambda: (compression == 0) & ((bits == 24) | (bits == 32)),
    )
    has_palette = (compression == 0) & (bits == 8)
    good = is_bgr | has_palette & (colors > 0) & (colors <= 256) & (
        offset >= 14 + header + 4 * colors
    )
    check = tf.debugging.Assert(
        (offset >= 54) & good,
        [REFUSED],
    )
    with tf.control_dependencies([check]):
        # The decoder wants pixels right behind the smallest header.
        rows = height * ((width * bits // 8 + 3) // 4 * 4)
        pixels = tf.strings.join(
            [
                part(encoded, 0, 10),
                b"\x36\0\0\0\x28\0\0\0",
                part(encoded, 18, 12),
                bytes(24),
                part(encoded, tf.cast(offset, tf.int64), rows),
            ]
        )

    def by_palette():
        palette = numbers(
            encoded, 14 + header, 4 * colors, tf.uint8, check=False
        )
        palette = tf.reshape(palette, (-1, 4))[:, 2::-1]
        indices = tf.cast(tf.io.decode_bmp(pixels)[..., 0], tf.int32)
        return tf.gather(palette, indices)

    return tf.cond(
        has_palette,
        by_palette,
        lambda: tf.io.decode_bmp(pixels, channels=3),
    )
