"""Encoded images to RGB inside a TensorFlow graph.

Training, evaluation and serving decode with this module. It returns the pixels
of `keras_cait.load_image`, where that reads the file, or refuses it, and is
safe with untrusted files: the header is checked before any memory is allocated
for pixels.

Only this package of keras_cait imports TensorFlow; `import keras_cait` does not
import it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import tensorflow as tf

from keras_cait.decoding import bmp, gif, jpeg, png
from keras_cait.decoding.orientation import turn
from keras_cait.decoding.reading import part
from keras_cait.decoding.refusals import (
    JPEG,
    NO_PIXELS,
    SIGNATURES,
    TOO_LARGE,
    UNKNOWN,
    has_pixels,
    is_too_large,
    reasons,
)
from keras_cait.decoding.resizing import resize_and_crop_in_graph
from keras_cait.preprocessing import MAX_MEGAPIXELS, check_size

# A JPEG is decoded at one of these parts of its size, as cheaply as smaller.
JPEG_PARTS = (1, 2, 4, 8)
FULL_SIZE = 0  # place in `JPEG_PARTS`


def decode_image(
    encoded: tf.Tensor, max_megapixels: float = MAX_MEGAPIXELS
) -> tf.Tensor:
    """Decodes a JPEG, PNG, GIF or BMP.

    The pixels equal those of `keras_cait.load_image`: gray and palette images
    become RGB, 16 bits become 8, transparency is dropped, the EXIF orientation
    is applied, and an animation yields its first frame. (Values of CMYK differ
    by at most 1.) It refuses: JPEG with arithmetic coding, 12 bits, lossless,
    or CMYK without an Adobe marker; PNG with a side of more than 1,000,000
    pixels; GIF without a palette, or whose first frame exceeds the canvas; BMP
    of 1, 4 or 16 bits, compressed, with masks of another order than BGR, or
    with the header of OS/2. Damage beside the pixels, such as in a color
    profile, is ignored, where Pillow may refuse the file.

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
        return _decode(encoded, tf.identity(header), FULL_SIZE)


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
    header = _header(encoded)
    check = tf.debugging.Assert(has_pixels(header), [NO_PIXELS])
    with tf.control_dependencies([check]):
        return header[1:3]


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
            jpeg.stored_box(box, height, width, orientation)
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
        return turn(image, orientation)

    def part_of_other() -> tf.Tensor:
        image = _decode(encoded, header, FULL_SIZE)
        height, width = tf.unstack(tf.shape(image)[:2])
        top, left, rows, columns = tf.unstack(
            tf.convert_to_tensor(choose(height, width))
        )
        return image[top : top + rows, left : left + columns]

    image = tf.cond(header[0] == JPEG, part_of_jpeg, part_of_other)
    return tf.ensure_shape(image, (None, None, 3))


def decode_each(
    image_bytes: tf.Tensor,
    size: int | tuple[int, int],
    crop_ratio: float = 1.0,
    max_megapixels: float = MAX_MEGAPIXELS,
    fast_jpeg: bool = False,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Decodes a batch of images in parallel and crops each to one size.

    A refused image does not affect the others. All images that are decoded at
    the same time have at most `max_megapixels` together, so that memory does
    not grow with the batch.

    Args:
        image_bytes: string tensor `(batch,)`, contents of files, as for
            `decode_image`.
        size: height and width in pixels, or an int for both.
        crop_ratio: float in (0, 1]. Share of the shorter side that is kept.
        max_megapixels: limit of each image's width x height in millions.
        fast_jpeg: whether a JPEG is decoded at 1/2, 1/4 or 1/8 of its size,
            where that is a whole number of pixels and at least twice `size`.
            They then differ by some levels from those of `load_image`.

    Returns:
        float32 tensor `(batch, height, width, 3)`, whole numbers in 0...255,
        all 0 if the image is refused; and string tensor `(batch,)`, why it is
        refused, empty if it is not.

    Example:
    >>> good = tf.io.encode_png(tf.zeros((48, 64, 3), tf.uint8))
    >>> images, errors = decode_each(tf.stack([good, "<svg/>"]), 32)
    >>> errors.numpy()[1]
    b'Not a JPEG, PNG, GIF or BMP image, but text such as SVG or HTML.'
    """
    size = check_size(size)
    count = tf.size(image_bytes, tf.int64)
    headers, read = each(image_bytes, _header, (4,), tf.int64)
    good = has_pixels(headers) & ~is_too_large(headers, max_megapixels)
    pixels = tf.where(good, headers[:, 1] * headers[:, 2], 0)
    largest = tf.maximum(tf.reduce_max(tf.pad(pixels, [[0, 1]])), 1)

    def decode(element: tuple[tf.Tensor, tf.Tensor, tf.Tensor]) -> tf.Tensor:
        encoded, header, is_good = element
        place = FULL_SIZE
        if fast_jpeg:
            place = _smallest_part(header, size, crop_ratio)
        check = tf.debugging.Assert(is_good, ["Refused by its header."])
        with tf.control_dependencies([check]):
            image = _decode(encoded, tf.identity(header), place)
        return resize_and_crop_in_graph(image, size, crop_ratio)

    images, decoded = each(
        (image_bytes, headers, good),
        decode,
        (*size, 3),
        tf.float32,
        int(max_megapixels * 1e6) // largest,
    )
    errors = tf.cond(
        tf.reduce_all(decoded),
        lambda: tf.fill([count], ""),
        lambda: tf.where(
            decoded, "", reasons(image_bytes, headers, read, max_megapixels)
        ),
    )
    return images, errors


def decode_batch(
    image_bytes: tf.Tensor,
    size: int | tuple[int, int],
    crop_ratio: float = 1.0,
    max_megapixels: float = MAX_MEGAPIXELS,
    fast_jpeg: bool = False,
) -> tf.Tensor:
    """Decodes a batch of images as `decode_each` does, all or none.

    Args:
        image_bytes, size, crop_ratio, max_megapixels, fast_jpeg: as in
            `decode_each`.

    Returns:
        float32 tensor `(batch, height, width, 3)`, whole numbers in 0...255.

    Raises:
        tf.errors.InvalidArgumentError: an image is too large or cannot be
            decoded; the message lists the index of each such image, and why.

    Example:
    >>> encoded = tf.io.encode_png(tf.zeros((48, 64, 3), tf.uint8))
    >>> tuple(decode_batch(encoded[None], 32).shape)
    (1, 32, 32, 3)
    """
    images, errors = decode_each(
        image_bytes, size, crop_ratio, max_megapixels, fast_jpeg
    )
    refused = tf.where(errors != "")[:, 0]
    check = tf.debugging.Assert(
        tf.size(refused) == 0,
        ["Refused image_bytes at", refused, tf.gather(errors, refused)],
        summarize=1000,
    )
    with tf.control_dependencies([check]):
        return tf.identity(images)


def each(
    inputs: Any,
    function: Callable[[Any], tf.Tensor],
    shape: tuple[int, ...],
    dtype: tf.DType,
    parallel: tf.Tensor | None = None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Maps a function over a batch; where it fails, its result is zeros.

    Args:
        inputs: tensor `(batch, ...)`, or a tuple of them.
        function: function of one element to a tensor.
        shape, dtype: of that tensor.
        parallel: number of elements at the same time; `None` is all.

    Returns:
        Tensor `(batch, *shape)`, and bool `(batch,)`: where it has succeeded.

    Example:
    >>> results, good = each(
    ...     tf.constant(["a", ""]),
    ...     lambda text: tf.strings.substr(text, 1, 0),
    ...     (),
    ...     tf.string,
    ... )
    >>> good.numpy().tolist()
    [True, False]
    """
    count = tf.shape(tf.nest.flatten(inputs)[0], tf.int64)[0]
    parallel = count if parallel is None else tf.minimum(parallel, count)
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
    return tf.group(
        tf.debugging.Assert(has_pixels(header), [NO_PIXELS]),
        tf.debugging.Assert(
            ~is_too_large(header, max_megapixels),
            [TOO_LARGE.format(max_megapixels), header[1:3]],
        ),
    )


# Traced once: every dataset decodes, and tracing takes over a second.
@tf.function(input_signature=[tf.TensorSpec((), tf.string)], autograph=False)
def _header(encoded):
    """int64 `[format, height, width, orientation]`, as they are stored."""
    matches = tf.stack(
        [
            part(encoded, 0, len(signature)) == signature
            for signature in SIGNATURES
        ]
    )
    check = tf.debugging.Assert(tf.reduce_any(matches), [f"{UNKNOWN}."])
    with tf.control_dependencies([check]):
        image_format = tf.argmax(matches, output_type=tf.int32)
    header = tf.switch_case(
        image_format,
        [
            lambda: jpeg.read_header(encoded),
            lambda: png.read_header(encoded),
            lambda: gif.read_header(encoded),
            lambda: bmp.read_header(encoded),
        ],
    )
    return tf.concat([[tf.cast(image_format, tf.int64)], header], axis=0)


# Not inlined: branches that are not taken cost time per operation.
@tf.function(
    input_signature=[
        tf.TensorSpec((), tf.string),
        tf.TensorSpec((4,), tf.int64),
        tf.TensorSpec((), tf.int32),
    ],
    autograph=False,
    experimental_attributes={"_noinline": True},
)
def _decode(encoded, header, place):
    """Decodes an image whose header has been checked."""
    is_jpeg = header[0] == JPEG
    part = tf.where(is_jpeg, tf.gather(JPEG_PARTS, place), 1)
    decode_jpeg = [
        partial(
            tf.io.decode_jpeg,
            encoded,
            channels=3,
            ratio=ratio,
            dct_method="INTEGER_ACCURATE",
        )
        for ratio in JPEG_PARTS
    ]
    image = tf.switch_case(
        tf.cast(header[0], tf.int32),
        [
            lambda: turn(tf.switch_case(place, decode_jpeg), header[3]),
            lambda: png.decode(encoded),
            lambda: gif.decode(encoded),
            lambda: bmp.decode(encoded),
        ],
    )
    image = tf.ensure_shape(image, (None, None, 3))
    height, width = tf.unstack(-(-header[1:3] // tf.cast(part, tf.int64)))
    check = tf.debugging.Assert(
        tf.size(image, tf.int64) == 3 * height * width,
        ["The image has another size than its header says."],
    )
    with tf.control_dependencies([check]):
        return tf.identity(image)


def _smallest_part(header, size, crop_ratio):
    """Place in `JPEG_PARTS` of the smallest that leaves twice the size.

    It divides both sides: otherwise the last pixels would be stretched.
    """
    sides = header[1:3]
    upright = tf.where(header[3] >= 5, sides[::-1], sides)
    times = tf.reduce_min(tf.cast(upright, tf.float32) / size) * crop_ratio
    fits = [
        (times >= 2.0 * part) & tf.reduce_all(sides % part == 0)
        for part in JPEG_PARTS[1:]
    ]
    return tf.math.count_nonzero(tf.stack(fits), dtype=tf.int32)
