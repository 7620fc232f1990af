"""Photos turned upright by the orientation that a camera wrote, in the graph.

Cameras store the sensor's rows and note in EXIF how they are to be turned.
TensorFlow decodes the rows alone. A JPEG is a list of segments, of which the
one of EXIF holds a TIFF directory of tagged values.

Reference: Exif 2.32, sections 4.5 and 4.6.4; tag 0x0112.
"""

import tensorflow as tf

EXIF, SCAN = 0xE1, 0xDA  # markers of segments
ORIENTATION = 0x0112
# Segments of EXIF are at most this long, and come first.
HEADER = 2**17


def upright(image, encoded):
    """Turns the rows of a photo as its EXIF orientation says.

    Args:
        image: tensor `(height, width, channels)`, decoded.
        encoded: scalar string tensor, the picture's file.

    Returns:
        Tensor `(height, width, channels)`, or `(width, height, channels)`. Of
        a file that is no JPEG, or has no orientation that can be read, it is
        the image.

    Example:
    >>> picture = tf.io.encode_jpeg(np.zeros((48, 64, 3), "uint8"))
    >>> tuple(upright(tf.io.decode_jpeg(picture), picture).shape)
    (48, 64, 3)
    """
    orientation = exif_orientation(encoded)
    transposed = tf.cast(orientation >= 5, tf.int32)
    rows = step(orientation, (3, 4, 7, 8))
    columns = step(orientation, (2, 3, 6, 7))
    turned = tf.transpose(image, tf.stack([transposed, 1 - transposed, 2]))
    return tf.ensure_shape(
        turned[::rows, ::columns], (None, None, image.shape[-1])
    )


def step(orientation, mirrored):
    """-1 where an axis is mirrored, else 1."""
    return tf.where(tf.reduce_any(orientation == mirrored), -1, 1)


def exif_orientation(encoded):
    """The orientation of a JPEG, 1...8; 1 where none can be read."""
    head = tf.io.decode_raw(tf.strings.substr(encoded, 0, HEADER), tf.uint8)
    # What is read behind the end is 0: no marker, no tag, no orientation.
    head = tf.pad(tf.cast(head, tf.int64), [[0, 1]])
    end = tf.size(head, tf.int64) - 1

    def number(at, length, little_endian=False):
        """Unsigned integers of some bytes that start at the given places."""
        places = tf.range(length, dtype=tf.int64)
        found = tf.gather(head, tf.minimum(at[..., None] + places, end))
        power = places if little_endian else length - 1 - places
        return tf.reduce_sum(found * 256**power, axis=-1)

    def is_exif(at):
        return (number(at, 2) == 0xFF00 + EXIF) & (
            number(at + 4, 6) == int.from_bytes(b"Exif\0\0")
        )

    def is_other_segment(at):
        marker = number(at, 2) - 0xFF00
        return (marker > 0) & (marker != SCAN) & ~is_exif(at)

    (at,) = tf.while_loop(
        is_other_segment,
        lambda at: (at + 2 + number(at + 2, 2),),
        (tf.constant(2, tf.int64),),
    )
    tiff = at + 10
    is_intel = number(tiff, 2) == int.from_bytes(b"II")

    def read(at, length):
        return tf.where(
            is_intel, number(at, length, little_endian=True), number(at, length)
        )

    directory = tf.minimum(tiff + read(tiff + 4, 4), end)
    entries = directory + 2 + 12 * tf.range(read(directory, 2))
    values = tf.where(read(entries, 2) == ORIENTATION, read(entries + 8, 2), 1)
    orientation = tf.reduce_max(values)
    return tf.where(
        is_exif(at) & (orientation >= 1) & (orientation <= 8), orientation, 1
    )
