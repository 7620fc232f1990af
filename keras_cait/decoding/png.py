"""PNG in the graph.

A PNG consists of chunks of a length (4 bytes), a type (4 bytes), data and a
checksum (4 bytes). Reference: W3C PNG specification, third edition.
"""

import tensorflow as tf

from keras_cait.decoding.orientation import read_orientation, turn
from keras_cait.decoding.reading import MAX_BLOCKS, numbers, part
from keras_cait.preprocessing import EXIF

REFUSED = "The PNG has no header."


def read_header(encoded: tf.Tensor) -> tf.Tensor:
    """Reads int64 `[height, width, orientation]`, as they are stored."""
    size = tf.cast(numbers(encoded, 16, 2, tf.int32), tf.int64)
    check = tf.debugging.Assert(
        part(encoded, 8, 8) == b"\0\0\0\rIHDR",
        [REFUSED],
    )
    with tf.control_dependencies([check]):
        return tf.concat([size[::-1], [1]], axis=0)


def decode(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes the chunks of pixels. The others may hold compressed bombs."""
    limit = MAX_BLOCKS + tf.strings.length(encoded) // 1024
    data = tf.constant(b"IDAT")

    def following(at, kind, length, found):
        at += 12 + length
        before = kind
        length = tf.cast(numbers(encoded, at, 1, tf.int32)[0], tf.int64)
        kind = part(encoded, at + 4, 4)
        kind = tf.where(length >= 0, kind, b"")
        is_kind = tf.stack(
            [
                (kind == b"PLTE") & (found[1] == 0),
                kind == data,
                (before == data) & (kind != data),
                kind == b"eXIf",
            ]
        )
        return at, kind, length, tf.where(is_kind & (found == 0), at, found)

    # Unknown chunks are skipped if their type starts with a small letter.
    _, kind, _, found = tf.while_loop(
        lambda at, kind, length, found: tf.strings.regex_full_match(
            kind, "[a-z][a-zA-Z]{3}|PLTE|IDAT"
        ),
        following,
        (
            tf.constant(8, tf.int64),
            tf.constant(b"iHDR"),
            tf.constant(13, tf.int64),
            tf.zeros(4, tf.int64),
        ),
        maximum_iterations=limit,
    )
    palette, start, end, exif = tf.unstack(found)
    check = tf.debugging.Assert(
        (kind == b"IEND") & (start > 0), ["The PNG is truncated."]
    )

    def chunk(at):
        length = tf.cast(numbers(encoded, at, 1, tf.int32)[0], tf.int64)
        return part(encoded, at, 12 + length)

    def orientation():
        tiff = part(chunk(exif), 8, 2**31 - 1)
        # Some programs write the prefix of a JPEG.
        prefixed = part(tiff, 0, len(EXIF)) == EXIF
        start = tf.where(prefixed, len(EXIF), 0)
        return read_orientation(part(tiff, start, 2**16))

    with tf.control_dependencies([check]):
        pixels = tf.strings.join(
            [
                part(encoded, 0, 33),
                tf.cond(
                    palette > 0, lambda: chunk(palette), lambda: tf.constant("")
                ),
                part(encoded, start, end - start),
                b"\0\0\0\0IEND\xaeB`\x82",
            ]
        )
    bits, colors = tf.unstack(numbers(encoded, 24, 2, tf.uint8))
    image = tf.cond(
        (bits == 16) & (colors == 0),
        lambda: _decode_16_bit_gray(pixels),
        lambda: tf.io.decode_png(pixels, channels=3),
    )
    return turn(
        image,
        tf.cond(exif > 0, orientation, lambda: tf.constant(1, tf.int64)),
    )


def _decode_16_bit_gray(encoded):
    image = tf.io.decode_png(encoded, channels=1, dtype=tf.uint16)
    # round(image / 257), without a type that takes more memory.
    eight, shift = tf.constant(8, tf.uint16), tf.bitwise.right_shift
    image = tf.minimum(image, 2**16 - 129) + 128
    image = shift(image - shift(image, eight), eight)
    return tf.tile(tf.cast(image, tf.uint8), (1, 1, 3))
