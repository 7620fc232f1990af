"""Encoded images to RGB inside a TensorFlow graph.

The only module of keras_cait that imports TensorFlow.
"""

import tensorflow as tf

# The first bytes of the formats that TensorFlow decodes safely. Its decoders
# detect the format by themselves and would also run on WebP and JPEG XL, where
# an animated WebP corrupts the heap.
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM")


def decode_image(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes a JPEG, PNG, GIF (first frame) or BMP.

    Args:
        encoded: scalar string tensor, the bytes of the file.

    Returns:
        uint8 tensor `(height, width, 3)`, RGB in 0...255. Transparency is
        dropped.

    Raises:
        tf.errors.InvalidArgumentError: the bytes have another format or cannot
            be decoded.

    Example:
    >>> encoded = tf.io.encode_png(tf.zeros((48, 64, 1), tf.uint8))
    >>> decode_image(encoded).shape.as_list()
    [48, 64, 3]
    """
    matches = tf.stack(
        [
            tf.strings.substr(encoded, 0, len(signature)) == signature
            for signature in SIGNATURES
        ]
    )
    check = tf.debugging.Assert(
        tf.reduce_any(matches), ["Not a JPEG, PNG, GIF or BMP image."]
    )
    with tf.control_dependencies([check]):
        image_format = tf.argmax(matches, output_type=tf.int32)
    image = tf.switch_case(
        image_format,
        [
            lambda: tf.io.decode_jpeg(encoded, channels=3),
            lambda: tf.io.decode_png(encoded, channels=3),
            lambda: tf.io.decode_gif(encoded)[0],
            lambda: tf.io.decode_bmp(encoded, channels=3),
        ],
    )
    return tf.ensure_shape(image, (None, None, 3))
