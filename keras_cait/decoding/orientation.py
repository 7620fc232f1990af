"""The EXIF orientation of an image, and turning it upright.

Cameras store the sensor's rows, and note in EXIF how to turn them. EXIF is a
TIFF directory of tagged values. Reference: Exif 2.32, sections 4.5 and 4.6.4.
"""

import tensorflow as tf

from keras_cait.decoding.reading import part
from keras_cait.preprocessing import INTEGERS, ORIENTATION

SHORT, LONG = INTEGERS  # types


# Called where there is EXIF: inlined, its operations cost time in any image.
@tf.function(
    input_signature=[tf.TensorSpec((), tf.string)],
    autograph=False,
    experimental_attributes={"_noinline": True},
)
def read_orientation(tiff: tf.Tensor) -> tf.Tensor:
    """The orientation in a TIFF directory, 1...8; 1 if none can be read."""
    # What is read behind the end is 0: no tag.
    data = tf.cast(tf.io.decode_raw(tiff, tf.uint8), tf.int64)
    data = tf.pad(data, [[0, 1]])
    end = tf.size(data, tf.int64) - 1
    is_intel = part(tiff, 0, 4) == b"II*\0"
    is_motorola = part(tiff, 0, 4) == b"MM\0*"

    def read(at, length):
        """Unsigned integers of some bytes that start at the given places."""
        places = tf.range(length, dtype=tf.int64)
        found = tf.gather(data, tf.minimum(at[..., None] + places, end))
        power = tf.where(is_intel, places, length - 1 - places)
        return tf.reduce_sum(found * 256**power, axis=-1)

    directory = tf.minimum(read(tf.constant(4, tf.int64), 4), end)
    entries = directory + 2 + 12 * tf.range(read(directory, 2))
    kinds = read(entries + 2, 2)
    is_one = (kinds == SHORT) | (kinds == LONG)
    is_one &= read(entries + 4, 4) == 1
    values = tf.where(
        kinds == SHORT, read(entries + 8, 2), read(entries + 8, 4)
    )
    is_orientation = read(entries, 2) == ORIENTATION
    values = tf.where(is_orientation & is_one, values, 1)
    orientation = tf.reduce_max(tf.pad(values, [[0, 1]], constant_values=1))
    good = (is_intel | is_motorola) & (orientation >= 1) & (orientation <= 8)
    return tf.where(good, orientation, 1)


def turns(orientation: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Whether the axes are swapped, then rows and columns are reversed."""
    return (
        orientation >= 5,
        tf.reduce_any(orientation == (3, 4, 7, 8)),
        tf.reduce_any(orientation == (2, 3, 6, 7)),
    )


def turn(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Turns a stored image upright."""

    def turned():
        swapped, rows, columns = turns(orientation)
        swapped = tf.cast(swapped, tf.int32)
        swap = tf.stack([swapped, 1 - swapped, 2])
        dims = tf.stack([rows, columns, False])
        return tf.raw_ops.Reverse(tensor=tf.transpose(image, swap), dims=dims)

    return tf.cond(orientation == 1, lambda: image, turned)
