"""Bytes and numbers of an encoded image."""

import tensorflow as tf

# JPEG segments, PNG chunks and GIF blocks are read one by one. Real files have
# few, except for one per KB of pixels (PNG) or per 255 bytes (GIF).
MAX_BLOCKS = 1000


def part(
    encoded: tf.Tensor, at: int | tf.Tensor, length: int | tf.Tensor
) -> tf.Tensor:
    """Some bytes of a file; fewer if it ends before."""
    # Not beyond the end, as the error would quote the whole file.
    size = tf.cast(tf.strings.length(encoded), tf.int64)
    at = tf.minimum(tf.cast(at, tf.int64), size)
    return tf.strings.substr(encoded, at, tf.cast(length, tf.int64))


def numbers(
    encoded: tf.Tensor,
    at: int | tf.Tensor,
    count: int | tf.Tensor,
    dtype: tf.DType,
    little_endian: bool = False,
    check: bool = True,
) -> tf.Tensor:
    """Numbers of a file from some byte on; an error if it ends before."""
    data = part(encoded, at, count * dtype.size)
    values = tf.io.decode_raw(data, dtype, little_endian)
    return tf.ensure_shape(values, (count,)) if check else values
