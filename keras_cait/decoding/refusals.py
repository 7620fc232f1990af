"""Why an image of a batch is refused.

The graph goes on after an image that cannot be decoded, but cannot read the
error. The reason follows from the file and from the step that failed.
"""

import tensorflow as tf

from keras_cait.decoding import bmp, gif, jpeg, png

# TensorFlow's decoders detect the format by themselves and also run on WebP,
# where an animation corrupts the heap. Only these formats may reach them.
FORMATS = JPEG, PNG, GIF, BMP = range(4)
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM")
# Marks of files that are sent by mistake, and where they are.
OTHERS = (
    (8, b"WEBP", "a WebP"),
    (4, b"ftypavi", "an AVIF"),
    (4, b"ftyphei", "a HEIC"),
    (4, b"ftypmif1", "a HEIC"),
    (0, b"II*\0", "a TIFF"),
    (0, b"MM\0*", "a TIFF"),
    (0, b"%PDF", "a PDF"),
    (0, b"<", "text such as SVG or HTML"),
)

UNKNOWN = "Not a JPEG, PNG, GIF or BMP image"
NO_PIXELS = "The image has no pixels."
TOO_LARGE = "The image has more than {:g} megapixels (height, width):"
# By format: its pixels cannot be decoded and its end is missing, its header
# cannot be read, or its pixels cannot be decoded.
ENDS = (b"\xff\xd9", b"IEND\xaeB`\x82", b"", b"")
REASONS = (
    ("The JPEG is truncated.", jpeg.REFUSED, "The JPEG is damaged."),
    ("The PNG is truncated.", png.REFUSED, "The PNG is damaged."),
    ("", "The GIF has no header.", gif.REFUSED),
    ("", bmp.REFUSED, bmp.REFUSED),
)


def reasons(
    image_bytes: tf.Tensor,
    headers: tf.Tensor,
    read: tf.Tensor,
    max_megapixels: float,
) -> tf.Tensor:
    """The reason of each image, given that it is refused.

    Args:
        image_bytes: string tensor `(batch,)`, contents of files.
        headers: int64 tensor `(batch, 4)`: format, height, width, orientation.
        read: bool tensor `(batch,)`, whether the header could be read.
        max_megapixels: limit of each image's width x height in millions.

    Returns:
        String tensor `(batch,)`.
    """
    sizes = tf.strings.length(image_bytes)

    def has(mark, at):
        """Which files have some bytes at some place."""
        at = tf.minimum(tf.maximum(at, 0), sizes)
        length = tf.fill(tf.shape(at), len(mark))
        return tf.strings.substr(image_bytes, at, length) == mark

    reason = tf.where(sizes == 0, f"{UNKNOWN}, but empty.", f"{UNKNOWN}.")
    for at, mark, name in OTHERS:
        reason = tf.where(has(mark, at), f"{UNKNOWN}, but {name}.", reason)
    for image_format in FORMATS:
        end = ENDS[image_format]
        truncated, no_header, no_pixels = REASONS[image_format]
        # Bytes may follow the end: it tells nothing about a header.
        damage = tf.where(has(end, sizes - len(end)), no_pixels, truncated)
        damage = tf.where(read, damage, no_header)
        reason = tf.where(has(SIGNATURES[image_format], 0), damage, reason)
    height, width = tf.unstack(tf.strings.as_string(headers[:, 1:3]), axis=1)
    text = f"{TOO_LARGE.format(max_megapixels)} ["
    large = tf.strings.join([text, height, " ", width, "]"])
    reason = tf.where(is_too_large(headers, max_megapixels), large, reason)
    return tf.where(read & ~has_pixels(headers), NO_PIXELS, reason)


def has_pixels(headers: tf.Tensor) -> tf.Tensor:
    """Whether height and width are positive, in headers `(..., 4)`."""
    return tf.reduce_all(headers[..., 1:3] > 0, axis=-1)


def is_too_large(headers: tf.Tensor, max_megapixels: float) -> tf.Tensor:
    """Whether images are larger than the limit, by headers `(..., 4)`."""
    limit = int(max_megapixels * 1e6)
    return headers[..., 1] * headers[..., 2] > limit
