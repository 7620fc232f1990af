"""GIF in the graph: its first frame.

A GIF consists of a header, a palette and blocks. A block is a chain of up to
255 bytes, each chain with its length before it. Reference: CompuServe, GIF89a
specification.
"""

import tensorflow as tf

from keras_cait.decoding.reading import MAX_BLOCKS, numbers, part

EXTENSION, FRAME, TRANSPARENCY = 0x21, 0x2C, 0xF9
REFUSED = "The GIF is truncated, or its first frame exceeds the canvas."


def read_header(encoded: tf.Tensor) -> tf.Tensor:
    """Reads int64 `[height, width, orientation]`, as they are stored."""
    width_height = numbers(encoded, 6, 2, tf.uint16, little_endian=True)
    return tf.cast(tf.concat([width_height[::-1], [1]], axis=0), tf.int64)


def decode(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes the first frame, as a GIF of its own.

    TensorFlow would decode all frames, and make transparent pixels black.
    """
    data = tf.io.decode_raw(encoded, tf.uint8)
    limit = MAX_BLOCKS + tf.size(data) // 64

    def byte(at):
        return tf.cast(tf.gather(data, at), tf.int32)

    def palette_size(flags):
        bits = tf.bitwise.bitwise_and(flags, 7) + 1
        return tf.where(flags >= 128, 3 * tf.bitwise.left_shift(1, bits), 0)

    def end_of_chain(at, steps):
        return tf.while_loop(
            lambda at, length, steps: (length > 0) & (steps < limit),
            lambda at, length, steps: (
                at + 1 + length,
                byte(at + 1 + length),
                steps + 1,
            ),
            (at, byte(at), steps),
        )

    def skip_extension(at, steps, transparent):
        # A chain of 4 bytes: flags, 2 bytes of time, the transparent color.
        is_transparent = (byte(at + 1) == TRANSPARENCY) & (
            tf.bitwise.bitwise_and(byte(at + 3), 1) == 1
        )
        transparent = tf.where(is_transparent, byte(at + 6), transparent)
        at, _, steps = end_of_chain(at + 2, steps)
        return at + 1, steps + 1, transparent

    flags = byte(10)
    at, steps, transparent = tf.while_loop(
        lambda at, steps, transparent: (
            (byte(at) == EXTENSION) & (steps < limit)
        ),
        skip_extension,
        (13 + palette_size(flags), 0, 0),
    )
    left, top, width, height = tf.unstack(
        tf.cast(
            numbers(encoded, at + 1, 4, tf.uint16, little_endian=True),
            tf.int32,
        )
    )
    own_palette = palette_size(byte(at + 9))
    pixels = at + 10 + own_palette
    end, length, _ = end_of_chain(pixels + 1, steps)
    canvas_height, canvas_width = tf.unstack(
        tf.cast(read_header(encoded)[:2], tf.int32)
    )
    check = tf.debugging.Assert(
        (byte(at) == FRAME)
        & (length == 0)
        & (left + width <= canvas_width)
        & (top + height <= canvas_height),
        [REFUSED],
    )

    with tf.control_dependencies([check]):
        frame = tf.strings.join(
            [
                b"GIF89a",
                part(encoded, at + 5, 4),
                part(encoded, 10, 3 + palette_size(flags)),
                b",\0\0\0\0",
                part(encoded, at + 5, 5 + own_palette),
                part(encoded, pixels, end + 1 - pixels),
                b";",
            ]
        )
    image = tf.io.decode_gif(frame)[0]

    def on_canvas():
        has_own = own_palette > 0
        start = tf.where(has_own, at + 10, 13)
        size = tf.where(has_own, own_palette, palette_size(flags))
        # Black, if the palette does not have the color.
        palette = tf.pad(data[start : start + size], [[0, 3]])
        color = tf.minimum(3 * transparent, size) + tf.range(3)
        color = tf.gather(palette, color)
        around = (
            (top, canvas_height - top - height),
            (left, canvas_width - left - width),
            (0, 0),
        )
        # Padding writes zeros, which this makes the color.
        xor = tf.bitwise.bitwise_xor
        return xor(tf.pad(xor(image, color), around), color)

    return tf.cond(
        (width == canvas_width) & (height == canvas_height),
        lambda: image,
        on_canvas,
    )
