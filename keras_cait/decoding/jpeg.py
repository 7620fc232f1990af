"""JPEG in the graph: header and orientation.

A JPEG consists of segments of a marker (2 bytes), a length (2 bytes, which it
counts) and data. Reference: ITU-T T.81, annex B.
"""

import tensorflow as tf

from keras_cait.decoding.orientation import read_orientation, turns
from keras_cait.decoding.reading import MAX_BLOCKS, numbers, part
from keras_cait.preprocessing import EXIF, MAX_SCANS

FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended and progressive Huffman
SCAN, APP1, APP14, FILL = 0xDA, 0xE1, 0xEE, 0xFF
ADOBE_LENGTH = 12
# Tables, comments and application data may stand between them.
SEGMENTS = (*FRAMES, 0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0), FILL)
REFUSED = "The JPEG is of an unsupported kind, or its header is damaged."


def read_header(encoded: tf.Tensor) -> tf.Tensor:
    """Reads int64 `[height, width, orientation]`, as they are stored."""
    known = tf.constant([marker in SEGMENTS for marker in range(256)])

    def read(at):
        marker, length = tf.unstack(
            tf.cast(numbers(encoded, at, 2, tf.uint16), tf.int64)
        )
        marker = tf.where(marker >= 0xFF00, marker - 0xFF00, 0)
        return tf.where((length >= 2) | (marker == FILL), marker, 0), length

    def following(at, marker, length, found):
        at += tf.where(marker == FILL, tf.constant(1, tf.int64), 2 + length)
        marker, length = read(at)
        name = part(encoded, at + 4, len(EXIF))
        is_kind = tf.stack(
            [
                tf.reduce_any(marker == FRAMES),
                (marker == APP1) & (name == EXIF),
                # A shorter one tells Pillow that CMYK is inverted, not libjpeg.
                (marker == APP14)
                & (length >= 2 + ADOBE_LENGTH)
                & (tf.strings.substr(name, 0, 5) == b"Adobe"),
            ]
        )
        return at, marker, length, tf.where(is_kind & (found == 0), at, found)

    scan, marker, _, found = tf.while_loop(
        lambda at, marker, length, found: tf.gather(known, marker),
        following,
        # Starts as if the marker of the image were a fill byte.
        (
            tf.constant(1, tf.int64),
            tf.constant(FILL, tf.int64),
            tf.constant(0, tf.int64),
            tf.zeros(3, tf.int64),
        ),
        maximum_iterations=MAX_BLOCKS,
    )
    frame, exif, adobe = tf.unstack(found)
    bits, components = tf.unstack(
        tf.gather(numbers(encoded, frame + 4, 6, tf.uint8), [0, 5])
    )
    size = tf.cast(numbers(encoded, frame + 5, 2, tf.uint16), tf.int64)
    good = (
        (marker == SCAN)
        & (frame > 0)
        & (bits == 8)
        # Without Adobe's marker it is open whether CMYK is inverted.
        & (
            (components == 1)
            | (components == 3)
            | ((components == 4) & (adobe > 0))
        )
    )
    is_progressive = numbers(encoded, frame + 1, 1, tf.uint8)[0] == FRAMES[2]
    in_scan = numbers(encoded, scan + 4, 1, tf.uint8)[0]
    scans = tf.cond(
        is_progressive | (in_scan != components),
        lambda: _count_scans(part(encoded, scan, 2**31 - 1)),
        lambda: tf.constant(1, tf.int64),
    )
    check = tf.debugging.Assert(good & (scans <= MAX_SCANS), [REFUSED])

    def orientation():
        length = tf.cast(numbers(encoded, exif + 2, 1, tf.uint16)[0], tf.int64)
        length = tf.maximum(length - 2 - len(EXIF), 0)
        return read_orientation(part(encoded, exif + 10, length))

    with tf.control_dependencies([check]):
        orientation = tf.cond(
            exif > 0, orientation, lambda: tf.constant(1, tf.int64)
        )
        return tf.concat([size, [orientation]], axis=0)


def _count_scans(data):
    # Places of single bytes would take ten times the memory of the file.
    between = tf.strings.split(data, bytes([0xFF, SCAN]), MAX_SCANS + 1)
    return tf.size(between, tf.int64) - 1


def stored_box(
    box: tf.Tensor,
    height: tf.Tensor,
    width: tf.Tensor,
    orientation: tf.Tensor,
) -> tf.Tensor:
    """The part of the stored image that becomes a part of the upright one."""
    swapped, rows, columns = turns(orientation)
    upright = tf.where(swapped, [width, height], [height, width])
    corner, size = box[:2], box[2:]
    corner = tf.where([rows, columns], upright - corner - size, corner)
    return tf.where(
        swapped,
        tf.concat([corner[::-1], size[::-1]], axis=0),
        tf.concat([corner, size], axis=0),
    )
