"""Encoded pictures to the model's pixels, inside a TensorFlow graph."""

import tensorflow as tf

from export.orientation import upright
from keras_cait.decoding import decode_image
from keras_cait.preprocessing import resize_and_crop_in_graph


def decode_pictures(image_bytes, size):
    """Decodes a batch of pictures in parallel and crops each to one size.

    Args:
        image_bytes: string tensor `(batch,)`: JPEG, PNG, GIF (its first frame)
            or BMP, gray, RGB, with or without transparency; JPEG also CMYK,
            and turned upright by its EXIF orientation.
        size: pair of ints `(height, width)`, in pixels.

    Returns:
        float32 tensor `(batch, height, width, 3)`, whole numbers in 0...255.

    Raises:
        tf.errors.InvalidArgumentError: a picture cannot be decoded; the
            message tells the index of each such picture.

    Example:
    >>> picture = tf.io.encode_png(np.zeros((48, 64, 3), "uint8"))
    >>> tuple(decode_pictures(picture[None], (32, 32)).shape)
    (1, 32, 32, 3)
    """
    count = tf.size(image_bytes, tf.int64)
    decoded = (
        tf.data.Dataset.from_tensor_slices(image_bytes)
        .enumerate()
        .map(
            lambda index, encoded: (index, decode_picture(encoded, size)),
            num_parallel_calls=tf.maximum(count, 1),
        )
        .ignore_errors()
    )
    # One more element, so that there also is a batch when none was decoded.
    end = tf.data.Dataset.from_tensors((count, tf.zeros((*size, 3))))
    indices, images = (
        decoded.concatenate(end).batch(count + 1).get_single_element()
    )
    decoded_at = tf.reduce_any(tf.range(count)[:, None] == indices, axis=1)
    broken = tf.where(~decoded_at)[:, 0]
    message = "Not a JPEG, PNG, GIF or BMP that can be decoded: image_bytes at"
    check = tf.debugging.Assert(
        tf.size(broken) == 0, [message, broken], summarize=1000
    )
    with tf.control_dependencies([check]):
        return images[:-1]


def decode_picture(encoded, size):
    """One encoded picture to RGB of the given size, in 0...255."""
    image = upright(decode_image(encoded), encoded)
    return resize_and_crop_in_graph(image, size)
