"""Encoded images to RGB inside a TensorFlow graph.

Training, evaluation and serving decode with this module. It returns the pixels
of `keras_cait.load_image` or refuses the file, and is safe with untrusted
files: the header is checked before any memory is allocated for pixels.

This is the only module of keras_cait that imports TensorFlow; `import
keras_cait` does not import it.
"""

from collections.abc import Callable

import tensorflow as tf

from keras_cait.preprocessing import (
    MAX_MEGAPIXELS,
    MAX_SCANS,
    ORIENTATION,
    check_size,
    geometry,
)

# TensorFlow's decoders detect the format by themselves and also run on WebP,
# where an animation corrupts the heap. Only these formats may reach them.
JPEG, PNG, GIF, BMP = range(4)
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM")
# JPEG segments, PNG chunks and GIF blocks are read one by one. Real files have
# few, except for one per KB of pixels (PNG) or per 255 bytes (GIF).
MAX_BLOCKS = 1000
# Output pixels that are computed together, and values of a strip of rows.
BLOCK, STRIP = 16, 2**20


def decode_image(
    encoded: tf.Tensor, max_megapixels: float = MAX_MEGAPIXELS
) -> tf.Tensor:
    """Decodes a JPEG, PNG, GIF or BMP.

    The pixels equal those of `keras_cait.load_image`: gray and palette images
    become RGB, 16 bits become 8, transparency is dropped, the EXIF orientation
    is applied, and an animation yields its first frame. (Values of CMYK differ
    by at most 1.) Refused are: JPEG with arithmetic coding, 12 bits, lossless,
    or CMYK without an Adobe marker; GIF whose first frame exceeds the canvas;
    BMP of 1, 4 or 16 bits, compressed, or with the header of OS/2.

    Args:
        encoded: scalar string tensor, the content of a file.
        max_megapixels: limit of width x height in millions. The header is
            checked before the image is decoded.

    Returns:
        uint8 tensor `(height, width, 3)`, RGB in 0...255.

    Raises:
        tf.errors.InvalidArgumentError: the format is another, the image has
            more pixels than the limit, or it cannot be decoded.

    Example:
    >>> encoded = tf.io.encode_png(tf.zeros((48, 64, 1), tf.uint8))
    >>> decode_image(encoded).shape.as_list()
    [48, 64, 3]
    """
    header = _header(encoded)
    with tf.control_dependencies([_check_pixels(header, max_megapixels)]):
        return _decode(encoded, tf.identity(header))


def image_size(encoded: tf.Tensor) -> tf.Tensor:
    """Reads the size of a JPEG, PNG, GIF or BMP from its header.

    Args:
        encoded: scalar string tensor, the content of a file.

    Returns:
        int64 tensor `[height, width]`, of the pixels as they are stored: the
        EXIF orientation of an image may swap the two.

    Raises:
        tf.errors.InvalidArgumentError: the format is another, or the header is
            damaged.

    Example:
    >>> encoded = tf.io.encode_png(tf.zeros((48, 64, 1), tf.uint8))
    >>> image_size(encoded).numpy().tolist()
    [48, 64]
    """
    return _header(encoded)[1:3]


def decode_crop(
    encoded: tf.Tensor,
    choose: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    max_megapixels: float = MAX_MEGAPIXELS,
) -> tf.Tensor:
    """Decodes a part of an image. Of a JPEG, only that part is decoded.

    Args:
        encoded: scalar string tensor, the content of a file.
        choose: function of the upright image's height and width, int32
            scalars, to the part, int32 `[top, left, height, width]`.
        max_megapixels: limit of the whole image's width x height in millions.

    Returns:
        uint8 tensor `(height, width, 3)`, equal to that part of
        `decode_image(encoded)`.

    Raises:
        tf.errors.InvalidArgumentError: as for `decode_image`.

    Example:
    >>> encoded = tf.io.encode_jpeg(tf.zeros((48, 64, 3), tf.uint8))
    >>> decode_crop(encoded, lambda h, w: [0, 0, h // 2, w // 4]).shape
    TensorShape([24, 16, 3])
    """
    header = _header(encoded)
    with tf.control_dependencies([_check_pixels(header, max_megapixels)]):
        header = tf.identity(header)

    def part_of_jpeg() -> tf.Tensor:
        orientation = header[3]
        height, width = tf.unstack(tf.cast(header[1:3], tf.int32))
        swapped = orientation >= 5
        box = tf.convert_to_tensor(
            choose(
                tf.where(swapped, width, height),
                tf.where(swapped, height, width),
            )
        )
        top, left, rows, columns = tf.unstack(
            _stored_box(box, height, width, orientation)
        )
        # One more column on each side: colors are interpolated between them.
        first = tf.maximum(left - 1, 0)
        last = tf.minimum(left + columns + 1, width)
        image = tf.image.decode_and_crop_jpeg(
            encoded,
            [top, first, rows, last - first],
            channels=3,
            dct_method="INTEGER_ACCURATE",
        )[:, left - first : left - first + columns]
        return _turned(image, orientation)

    def part() -> tf.Tensor:
        image = _decode(encoded, header)
        height, width = tf.unstack(tf.shape(image)[:2])
        top, left, rows, columns = tf.unstack(
            tf.convert_to_tensor(choose(height, width))
        )
        return image[top : top + rows, left : left + columns]

    image = tf.cond(header[0] == JPEG, part_of_jpeg, part)
    return tf.ensure_shape(image, (None, None, 3))


def decode_batch(
    image_bytes: tf.Tensor,
    size: int | tuple[int, int],
    crop_ratio: float = 1.0,
    max_megapixels: float = MAX_MEGAPIXELS,
) -> tf.Tensor:
    """Decodes a batch of images in parallel and crops each to one size.

    All images that are decoded at the same time have at most `max_megapixels`
    together, so that memory does not grow with the batch.

    Args:
        image_bytes: string tensor `(batch,)`, contents of files, as for
            `decode_image`.
        size: height and width in pixels, or an int for both.
        crop_ratio: float in (0, 1]. Share of the shorter side that is kept.
        max_megapixels: limit of each image's width x height in millions.

    Returns:
        float32 tensor `(batch, height, width, 3)`, whole numbers in 0...255.

    Raises:
        tf.errors.InvalidArgumentError: an image is too large or cannot be
            decoded; the message lists the index of each such image.

    Example:
    >>> encoded = tf.io.encode_png(tf.zeros((48, 64, 3), tf.uint8))
    >>> tuple(decode_batch(encoded[None], 32).shape)
    (1, 32, 32, 3)
    """
    size = check_size(size)
    limit = int(max_megapixels * 1e6)
    count = tf.size(image_bytes, tf.int64)
    headers, read = _successes(image_bytes, _header, (4,), tf.int64, count)
    pixels = headers[:, 1] * headers[:, 2]
    too_large = tf.where(pixels > limit)[:, 0]
    message = f"More than {max_megapixels:g} megapixels: image_bytes at"
    check = tf.debugging.Assert(
        tf.size(too_large) == 0,
        [
            message,
            too_large,
            "of (height, width)",
            tf.gather(headers[:, 1:3], too_large),
        ],
        summarize=1000,
    )
    with tf.control_dependencies([check]):
        largest = tf.maximum(tf.reduce_max(tf.pad(pixels, [[0, 1]])), 1)

    def decode(element: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        encoded, header = element
        readable = tf.debugging.Assert(header[1] > 0, ["No header."])
        with tf.control_dependencies([readable]):
            image = _decode(encoded, tf.identity(header))
        return resize_and_crop_in_graph(image, size, crop_ratio)

    images, decoded = _successes(
        (image_bytes, headers),
        decode,
        (*size, 3),
        tf.float32,
        tf.minimum(limit // largest, count),
    )
    broken = tf.where(~(read & decoded))[:, 0]
    message = "Not a JPEG, PNG, GIF or BMP that can be decoded: image_bytes at"
    check = tf.debugging.Assert(
        tf.size(broken) == 0, [message, broken], summarize=1000
    )
    with tf.control_dependencies([check]):
        return tf.identity(images)


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


def _successes(inputs, function, shape, dtype, parallel):
    """Maps a function over a batch; an element that fails becomes zeros.

    Returns:
        Tensor `(batch, *shape)`, and bool `(batch,)`: which have succeeded.
    """
    count = tf.shape(tf.nest.flatten(inputs)[0], tf.int64)[0]
    mapped = (
        tf.data.Dataset.from_tensor_slices(inputs)
        .enumerate()
        .map(
            lambda index, element: (index, function(element)),
            num_parallel_calls=tf.maximum(parallel, 1),
        )
        .ignore_errors()
    )
    # One more element, as an empty dataset has no batch.
    end = tf.data.Dataset.from_tensors((count, tf.zeros(shape, dtype)))
    indices, outputs = (
        mapped.concatenate(end).batch(count + 1).get_single_element()
    )
    positions = tf.reduce_max(
        tf.where(
            tf.range(count)[:, None] == indices, tf.range(tf.size(indices)), -1
        ),
        axis=1,
    )
    return tf.gather(outputs, positions % tf.size(indices)), positions >= 0


def _check_pixels(header, max_megapixels):
    height, width = header[1], header[2]
    return tf.debugging.Assert(
        height * width <= int(max_megapixels * 1e6),
        [
            f"The image has more than {max_megapixels:g} megapixels "
            "(height, width):",
            header[1:3],
        ],
    )


def _header(encoded):
    """int64 `[format, height, width, orientation]`, as they are stored."""
    matches = tf.stack(
        [
            _part(encoded, 0, len(signature)) == signature
            for signature in SIGNATURES
        ]
    )
    check = tf.debugging.Assert(
        tf.reduce_any(matches), ["Not a JPEG, PNG, GIF or BMP image."]
    )
    with tf.control_dependencies([check]):
        image_format = tf.argmax(matches, output_type=tf.int32)
    header = tf.switch_case(
        image_format,
        [
            lambda: _jpeg_header(encoded),
            lambda: _png_header(encoded),
            lambda: _gif_header(encoded),
            lambda: _bmp_header(encoded),
        ],
    )
    check = tf.debugging.Assert(
        tf.reduce_all(header[:2] > 0), ["The image has no pixels."]
    )
    with tf.control_dependencies([check]):
        return tf.concat([[tf.cast(image_format, tf.int64)], header], axis=0)


def _decode(encoded, header):
    """Decodes an image whose header has been checked."""
    image = tf.switch_case(
        tf.cast(header[0], tf.int32),
        [
            lambda: _turned(
                tf.io.decode_jpeg(
                    encoded, channels=3, dct_method="INTEGER_ACCURATE"
                ),
                header[3],
            ),
            lambda: _decode_png(encoded),
            lambda: _decode_gif(encoded),
            lambda: _decode_bmp(encoded),
        ],
    )
    image = tf.ensure_shape(image, (None, None, 3))
    check = tf.debugging.Assert(
        tf.size(image, tf.int64) == 3 * header[1] * header[2],
        ["The image has another size than its header says."],
    )
    with tf.control_dependencies([check]):
        return tf.identity(image)


# JPEG: segments of a marker (2 bytes), a length (2 bytes, which it counts) and
# data. Reference: ITU-T T.81, annex B.

FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended and progressive Huffman
SCAN, APP1, APP14, FILL = 0xDA, 0xE1, 0xEE, 0xFF
# Tables, comments and application data may stand between them.
SEGMENTS = (*FRAMES, 0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0), FILL)
EXIF = b"Exif\0\0"


def _jpeg_header(encoded):
    known = tf.constant([marker in SEGMENTS for marker in range(256)])

    def read(at):
        marker, length = tf.unstack(
            tf.cast(_numbers(encoded, at, 2, tf.uint16), tf.int64)
        )
        marker = tf.where(marker >= 0xFF00, marker - 0xFF00, 0)
        return tf.where((length >= 2) | (marker == FILL), marker, 0), length

    def following(at, marker, length, found):
        at += tf.where(marker == FILL, tf.constant(1, tf.int64), 2 + length)
        marker, length = read(at)
        name = _part(encoded, at + 4, len(EXIF))
        is_kind = tf.stack(
            [
                tf.reduce_any(marker == FRAMES),
                (marker == APP1) & (name == EXIF),
                (marker == APP14) & tf.strings.regex_full_match(name, "Adobe."),
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
        tf.gather(_numbers(encoded, frame + 4, 6, tf.uint8), [0, 5])
    )
    size = tf.cast(_numbers(encoded, frame + 5, 2, tf.uint16), tf.int64)
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
    is_progressive = _numbers(encoded, frame + 1, 1, tf.uint8)[0] == FRAMES[2]
    in_scan = _numbers(encoded, scan + 4, 1, tf.uint8)[0]
    scans = tf.cond(
        is_progressive | (in_scan != components),
        lambda: _count_scans(_part(encoded, scan, 2**31 - 1)),
        lambda: tf.constant(1, tf.int64),
    )
    check = tf.debugging.Assert(
        good & (scans <= MAX_SCANS), ["A JPEG of a kind that is not supported."]
    )

    def orientation():
        length = tf.cast(_numbers(encoded, exif + 2, 1, tf.uint16)[0], tf.int64)
        length = tf.maximum(length - 2 - len(EXIF), 0)
        return _orientation(_part(encoded, exif + 10, length))

    with tf.control_dependencies([check]):
        orientation = tf.cond(
            exif > 0, orientation, lambda: tf.constant(1, tf.int64)
        )
        return tf.concat([size, [orientation]], axis=0)


def _count_scans(data):
    data = tf.io.decode_raw(data, tf.uint8)
    marked = tf.where(data[:-1] == 0xFF)[:, 0] + 1
    return tf.math.count_nonzero(tf.gather(data, marked) == SCAN)


def _stored_box(box, height, width, orientation):
    """The part of the stored image that becomes a part of the upright one."""
    swapped, rows, columns = _turns(orientation)
    upright = tf.where(swapped, [width, height], [height, width])
    corner, part = box[:2], box[2:]
    corner = tf.where([rows, columns], upright - corner - part, corner)
    return tf.where(
        swapped,
        tf.concat([corner[::-1], part[::-1]], axis=0),
        tf.concat([corner, part], axis=0),
    )


# PNG: chunks of a length (4 bytes), a type (4 bytes), data and a checksum (4
# bytes). Reference: W3C PNG specification, third edition.


def _png_header(encoded):
    size = tf.cast(_numbers(encoded, 16, 2, tf.int32), tf.int64)
    check = tf.debugging.Assert(
        _part(encoded, 8, 8) == b"\0\0\0\rIHDR",
        ["A PNG without a header."],
    )
    with tf.control_dependencies([check]):
        return tf.concat([size[::-1], [1]], axis=0)


def _decode_png(encoded):
    """Decodes the chunks of pixels. The others may hold compressed bombs."""
    limit = MAX_BLOCKS + tf.strings.length(encoded) // 1024
    data = tf.constant(b"IDAT")

    def following(at, kind, length, found):
        at += 12 + length
        before = kind
        length = tf.cast(_numbers(encoded, at, 1, tf.int32)[0], tf.int64)
        kind = _part(encoded, at + 4, 4)
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
        (kind == b"IEND") & (start > 0), ["A PNG that is not whole."]
    )

    def chunk(at):
        length = tf.cast(_numbers(encoded, at, 1, tf.int32)[0], tf.int64)
        return _part(encoded, at, 12 + length)

    def orientation():
        tiff = _part(chunk(exif), 8, 2**31 - 1)
        # Some programs write the prefix of a JPEG.
        prefixed = _part(tiff, 0, len(EXIF)) == EXIF
        start = tf.where(prefixed, len(EXIF), 0)
        return _orientation(_part(tiff, start, 2**16))

    with tf.control_dependencies([check]):
        pixels = tf.strings.join(
            [
                _part(encoded, 0, 33),
                tf.cond(
                    palette > 0, lambda: chunk(palette), lambda: tf.constant("")
                ),
                _part(encoded, start, end - start),
                b"\0\0\0\0IEND\xaeB`\x82",
            ]
        )
    bits, colors = tf.unstack(_numbers(encoded, 24, 2, tf.uint8))
    image = tf.cond(
        (bits == 16) & (colors == 0),
        lambda: _decode_16_bit_gray(pixels),
        lambda: tf.io.decode_png(pixels, channels=3),
    )
    return _turned(
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


# GIF: a header, a palette, and blocks; blocks are chains of up to 255 bytes,
# each with its length before it. Reference: CompuServe, GIF89a specification.

EXTENSION, FRAME, TRANSPARENCY = 0x21, 0x2C, 0xF9


def _gif_header(encoded):
    width_height = _numbers(encoded, 6, 2, tf.uint16, little_endian=True)
    return tf.cast(tf.concat([width_height[::-1], [1]], axis=0), tf.int64)


def _decode_gif(encoded):
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
            _numbers(encoded, at + 1, 4, tf.uint16, little_endian=True),
            tf.int32,
        )
    )
    own_palette = palette_size(byte(at + 9))
    pixels = at + 10 + own_palette
    end, length, _ = end_of_chain(pixels + 1, steps)
    canvas_height, canvas_width = tf.unstack(
        tf.cast(_gif_header(encoded)[:2], tf.int32)
    )
    check = tf.debugging.Assert(
        (byte(at) == FRAME)
        & (length == 0)
        & (left + width <= canvas_width)
        & (top + height <= canvas_height),
        ["A GIF that is not whole, or whose first frame exceeds the canvas."],
    )

    with tf.control_dependencies([check]):
        frame = tf.strings.join(
            [
                b"GIF89a",
                _part(encoded, at + 5, 4),
                _part(encoded, 10, 3 + palette_size(flags)),
                b",\0\0\0\0",
                _part(encoded, at + 5, 5 + own_palette),
                _part(encoded, pixels, end + 1 - pixels),
                b";",
            ]
        )
    image = tf.io.decode_gif(frame)[0]

    def on_canvas():
        palette = tf.where(own_palette > 0, at + 10, 13)
        color = tf.gather(data, palette + 3 * transparent + tf.range(3))
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


# BMP: a file header (14 bytes), a header, a palette and rows from the bottom
# up. Reference: Microsoft, bitmap header types.

BMP_HEADERS = (40, 52, 56, 108, 124)  # lengths: version 3, 2 extensions, 4, 5
BITFIELDS = 3
BGR_MASKS = (0xFF0000, 0xFF00, 0xFF)


def _bmp_header(encoded):
    width, height = tf.unstack(
        tf.cast(_numbers(encoded, 18, 2, tf.int32, True), tf.int64)
    )
    return tf.stack([tf.abs(height), width, 1])


def _decode_bmp(encoded):
    """Decodes 8 bits with a palette, 24 and 32 bits.

    TensorFlow ignores compression, masks and palettes.
    """
    offset, header = tf.unstack(_numbers(encoded, 10, 2, tf.int32, True))
    compression = _numbers(encoded, 30, 1, tf.int32, True)[0]
    colors = _numbers(encoded, 46, 1, tf.int32, True)[0]
    colors = tf.where(colors == 0, 256, colors)
    bits = _numbers(encoded, 28, 1, tf.uint16, True)[0]
    bits = tf.cast(bits, tf.int64)
    height, width, _ = tf.unstack(_bmp_header(encoded))
    is_bgr = tf.cond(
        compression == BITFIELDS,
        lambda: (
            (bits == 32)
            & tf.reduce_all(
                _numbers(encoded, 54, 3, tf.int32, True) == BGR_MASKS
            )
        ),
        lambda: (compression == 0) & ((bits == 24) | (bits == 32)),
    )
    has_palette = (compression == 0) & (bits == 8)
    good = is_bgr | has_palette & (colors > 0) & (colors <= 256) & (
        offset >= 14 + header + 4 * colors
    )
    check = tf.debugging.Assert(
        tf.reduce_any(header == BMP_HEADERS) & (offset >= 54) & good,
        ["A BMP of a kind that is not supported."],
    )
    with tf.control_dependencies([check]):
        # The decoder wants pixels right behind the smallest header.
        rows = height * ((width * bits // 8 + 3) // 4 * 4)
        pixels = tf.strings.join(
            [
                _part(encoded, 0, 10),
                b"\x36\0\0\0\x28\0\0\0",
                _part(encoded, 18, 12),
                bytes(24),
                _part(encoded, tf.cast(offset, tf.int64), rows),
            ]
        )

    def by_palette():
        palette = _numbers(
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


# Orientation: cameras store the sensor's rows, and note in EXIF how they are to
# be turned. EXIF is a TIFF directory of tagged values. Reference: Exif 2.32,
# sections 4.5 and 4.6.4.


def _orientation(tiff):
    """The orientation in a TIFF directory, 1...8; 1 if none can be read."""
    # What is read behind the end is 0: no tag.
    data = tf.cast(tf.io.decode_raw(tiff, tf.uint8), tf.int64)
    data = tf.pad(data, [[0, 1]])
    end = tf.size(data, tf.int64) - 1
    is_intel = _part(tiff, 0, 4) == b"II*\0"
    is_motorola = _part(tiff, 0, 4) == b"MM\0*"

    def read(at, length):
        """Unsigned integers of some bytes that start at the given places."""
        places = tf.range(length, dtype=tf.int64)
        found = tf.gather(data, tf.minimum(at[..., None] + places, end))
        power = tf.where(is_intel, places, length - 1 - places)
        return tf.reduce_sum(found * 256**power, axis=-1)

    directory = tf.minimum(read(tf.constant(4, tf.int64), 4), end)
    entries = directory + 2 + 12 * tf.range(read(directory, 2))
    # The value is a short integer, or a long one.
    is_short = read(entries + 2, 2) == 3
    values = tf.where(is_short, read(entries + 8, 2), read(entries + 8, 4))
    values = tf.where(read(entries, 2) == ORIENTATION, values, 1)
    orientation = tf.reduce_max(tf.pad(values, [[0, 1]], constant_values=1))
    good = (is_intel | is_motorola) & (orientation >= 1) & (orientation <= 8)
    return tf.where(good, orientation, 1)


def _turns(orientation):
    """Whether the axes are swapped, then rows and columns are reversed."""
    return (
        orientation >= 5,
        tf.reduce_any(orientation == (3, 4, 7, 8)),
        tf.reduce_any(orientation == (2, 3, 6, 7)),
    )


def _turned(image, orientation):
    """Turns a stored image upright."""

    def turned():
        swapped, rows, columns = _turns(orientation)
        swapped = tf.cast(swapped, tf.int32)
        swap = tf.stack([swapped, 1 - swapped, 2])
        dims = tf.stack([rows, columns, False])
        return tf.raw_ops.Reverse(tensor=tf.transpose(image, swap), dims=dims)

    return tf.cond(orientation == 1, lambda: image, turned)


def _part(encoded, at, length):
    """Some bytes of a file; fewer if it ends before."""
    # Not beyond the end, as the error would quote the whole file.
    size = tf.cast(tf.strings.length(encoded), tf.int64)
    at = tf.minimum(tf.cast(at, tf.int64), size)
    return tf.strings.substr(encoded, at, tf.cast(length, tf.int64))


def _numbers(encoded, at, count, dtype, little_endian=False, check=True):
    """Numbers of a file from some byte on; an error if it ends before."""
    data = _part(encoded, at, count * dtype.size)
    numbers = tf.io.decode_raw(data, dtype, little_endian)
    return tf.ensure_shape(numbers, (count,)) if check else numbers


# Resizing.


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
