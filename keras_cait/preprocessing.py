"""Image loading, resizing, normalization and label decoding.

CaiT is evaluated on the whole shorter side (crop ratio 1.0), resized with
Pillow's antialiased bicubic filter. `keras_cait.decoding` does the same in a
TensorFlow graph.
"""

import functools
import io
import math
import os
import struct
from collections.abc import Callable
from contextlib import suppress
from importlib import resources
from typing import Any, BinaryIO

import numpy as np
from keras import ops
from PIL import Image

from keras_cait.layers import is_number

# ImageNet's mean and standard deviation of RGB, for pixels in 0...1.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Larger images are refused by default: they could exhaust the memory.
MAX_MEGAPIXELS = 50
# Not Pillow's others, which include a PostScript interpreter.
FORMATS = (
    *("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF"),
    "WEBP",
)
# A progressive JPEG is decoded once per scan. Encoders write 10 or so; a
# thousand of 50 megapixels fit into 100 KB and take a minute.
MAX_SCANS = 100
# Pillow's time grows with the square of the segments of EXIF in a JPEG: 10 MB
# of small ones take half a minute. Cameras write one.
MAX_EXIF = 100
# Tags of TIFF. `TILE_SIDES` are width and height.
BITS, COMPRESSION, PHOTOMETRIC, PLANAR = 0x0102, 0x0103, 0x0106, 0x011C
TILE_SIDES, SAMPLE_FORMAT = (0x0142, 0x0143), 0x0153
IS_PREVIEW, INNER_IMAGES = 0x00FE, 0x014A
# How Pillow turns an image upright, by its EXIF orientation.
EXIF = b"Exif\0\0"
ORIENTATION = 0x0112
INTEGERS = {3: "H", 4: "I"}  # short and long, by their types in EXIF
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# What `load_image` reads.
ImageSource = str | os.PathLike | bytes | Image.Image | np.ndarray


def load_image(
    source: ImageSource, max_megapixels: float = MAX_MEGAPIXELS
) -> np.ndarray:
    """Loads an image as 8-bit RGB.

    Reads JPEG, PNG, GIF, BMP, WebP, AVIF, TIFF, JPEG 2000 and binary PPM. Gray,
    palette, CMYK and 16-bit images become RGB, transparency is dropped, color
    profiles are ignored, the EXIF orientation is applied, and an animation
    yields its first frame.

    Args:
        source: path or content (bytes) of an image file, a Pillow image, or an
            array of uint8 (0...255) or uint16 (0...65535), `(height, width)`
            or `(height, width, channels)` with 1, 3 (RGB) or 4 (RGBA)
            channels.
        max_megapixels: limit of width x height in millions, except for arrays.
            It is checked before the image is decoded. Pillow has its own limit
            for files, twice `PIL.Image.MAX_IMAGE_PIXELS`, by default 179.

    Returns:
        uint8 array `(height, width, 3)`, RGB in 0...255.

    Raises:
        ValueError: the source is not an image, is damaged, has too many pixels,
            or is of a kind that Pillow misreads. The message names the file.

    Example:
    >>> load_image(np.zeros((48, 64), "uint8")).shape
    (48, 64, 3)
    """
    if isinstance(source, Image.Image):
        return _decode(source, "The Pillow image", max_megapixels)
    if isinstance(source, bytes | bytearray | memoryview):
        name = f"The source ({len(source)} bytes)"
        return _decode(io.BytesIO(source), name, max_megapixels)
    if isinstance(source, str | os.PathLike):
        if os.path.exists(source) and not os.path.isfile(source):
            # Such as a pipe, which would be waited for.
            raise ValueError(f"{os.fspath(source)!r} is not a file.")
        return _decode(source, repr(os.fspath(source)), max_megapixels)
    return _rgb_of_array(np.asarray(source))


def resize_and_crop(
    image: np.ndarray, size: int | tuple[int, int], crop_ratio: float = 1.0
) -> np.ndarray:
    """The evaluation transform: resizes an image and crops its center.

    The pixels equal those of torchvision's `Resize(size / crop_ratio,
    BICUBIC)` and `CenterCrop(size)` on Pillow images, and so timm's. Smaller
    images are enlarged. If the size is not square, the image is resized to
    just cover it. (In Pillow 13, torchvision's differ slightly for a few images
    that are more than twice as high as wide.)

    Args:
        image: uint8 array `(height, width, 3)`, as from `load_image`.
        size: height and width in pixels, or an int for both.
        crop_ratio: float in (0, 1]. Share of the shorter side that is kept.

    Returns:
        uint8 array `(size, size, 3)`, or of the given height and width.

    Raises:
        ValueError: an argument is out of its range.

    Example:
    >>> image = np.zeros((375, 500, 3), "uint8")
    >>> resize_and_crop(image, 224).shape
    (224, 224, 3)

    Reference: README_cait.md of facebookresearch/deit (crop ratio 1.0).
    """
    image = np.asarray(image)
    if (
        image.dtype != np.uint8
        or image.ndim != 3
        or image.shape[-1] != 3
        or 0 in image.shape
    ):
        raise ValueError(
            "image must be a uint8 array (height, width, 3). Received: "
            f"{image.dtype} of shape {image.shape}. load_image makes one."
        )
    height, width = check_size(size)
    resized_height, resized_width, top, left = geometry(
        image.shape[0], image.shape[1], (height, width), crop_ratio, max
    )
    if resized_height * resized_width > 16 * height * width / crop_ratio**2:
        # Long and narrow: Pillow would compute much that the crop removes.
        first_row, rows = _taps(image.shape[0], resized_height, top, height)
        first, columns = _taps(image.shape[1], resized_width, left, width)
        image = image[
            first_row : first_row + rows.shape[1],
            first : first + columns.shape[1],
        ]
        image = _to_8_bits(columns @ image.astype("float64"))
        image = _to_8_bits(rows @ image.transpose(1, 0, 2).astype("float64"))
        return np.ascontiguousarray(image.transpose(1, 0, 2))
    # In two steps, as from Pillow 13 on the order depends on the shape.
    resized = Image.fromarray(image)
    for new_size in (
        (resized_width, image.shape[0]),
        (resized_width, resized_height),
    ):
        resized = resized.resize(new_size, Image.Resampling.BICUBIC)
    return np.array(resized.crop((left, top, left + width, top + height)))


def decoding_memory(max_megapixels: float = MAX_MEGAPIXELS) -> float:
    """The most memory that decoding and resizing an image takes, in bytes.

    That is in addition to the encoded file. A decoded image has 3 bytes per
    pixel; a progressive CMYK JPEG takes the most, less than 4 times that, and
    50 MB are added for the rest. The limit holds for JPEG, PNG, GIF and BMP, in
    `load_image` and in `keras_cait.decoding` with a batch of any size. The
    formats that only `load_image` reads take up to twice as much, and an AVIF
    can hide a larger image than it declares, of up to 268 megapixels, which
    takes gigabytes.

    Source: `python -m benchmarks.images`; the other formats by hand.

    Args:
        max_megapixels: the limit of pixels, in millions.

    Example:
    >>> decoding_memory(50) / 1e6
    650.0
    """
    return 4 * 3 * max_megapixels * 1e6 + 50e6


def preprocess_input(x: Any) -> Any:
    """Normalizes RGB with ImageNet's mean and standard deviation.

    For models built with `include_preprocessing=False`. In other models,
    normalization is part of the model.

    Args:
        x: array or tensor `(..., 3)`, RGB in 0...255.

    Returns:
        float32 array, or tensor if `x` is a tensor, of the same shape.

    Raises:
        ValueError: the last axis does not have 3 channels.

    Example:
    >>> white = preprocess_input(np.full((224, 224, 3), 255))
    >>> round(float(white.max()), 2)
    2.64
    """
    shape = tuple(getattr(x, "shape", ()))
    if shape[-1:] != (3,):
        raise ValueError(
            "preprocess_input needs an array or tensor of RGB, 3 channels in "
            f"the last axis. Received: {type(x).__name__} of shape {shape}."
        )
    is_array = isinstance(x, np.ndarray)
    x = x.astype("float32") if is_array else ops.cast(x, "float32")
    mean = np.array(IMAGENET_MEAN, "float32")
    return (x / 255.0 - mean) / np.array(IMAGENET_STD, "float32")


def decode_predictions(
    probabilities: Any, top: int = 5
) -> list[list[tuple[str, str, float]]]:
    """Names the most probable ImageNet classes of each image.

    Args:
        probabilities: array or tensor `(batch, 1000)`, the output of a model
            with ImageNet's classes.
        top: number of classes per image, 1...1000.

    Returns:
        For each image a list of `(wordnet_id, label, score)`, best first.

    Raises:
        ValueError: the shape is wrong, or `top` is out of its range.

    Example:
    >>> decode_predictions(np.eye(1000)[[1]], top=1)
    [[('n01443537', 'goldfish', 1.0)]]

    Reference: identifiers are in the order of ILSVRC 2012. Labels are the
    first word of each WordNet 3.0 synset, made unique in five places (two
    cranes, two maillots, the Cardigan Welsh corgi).
    """
    probabilities = ops.convert_to_numpy(probabilities)
    if probabilities.ndim != 2 or probabilities.shape[1] != 1000:
        raise ValueError(
            "decode_predictions needs probabilities of ImageNet's classes, "
            f"(batch, 1000). Received: shape {probabilities.shape}. For a "
            "model with other classes, sort the scores with your own labels."
        )
    if not isinstance(top, int | np.integer) or not 1 <= top <= 1000:
        raise ValueError(
            f"top must be an integer in 1...1000. Received: top={top!r}."
        )
    labels = imagenet_labels()
    # Unsigned scores of a quantized model have no negatives.
    scores = probabilities.astype("float64")
    best = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    return [
        [(*labels[index], float(scores[index])) for index in indices]
        for indices, scores in zip(best, scores, strict=True)
    ]


@functools.cache
def imagenet_labels() -> tuple[tuple[str, str], ...]:
    """Returns ImageNet's 1000 classes in order, as `(wordnet_id, label)`.

    Example:
    >>> imagenet_labels()[0]
    ('n01440764', 'tench')
    """
    file = resources.files("keras_cait") / "imagenet_labels.txt"
    lines = file.read_text(encoding="utf-8").splitlines()
    pairs = (line.split(" ", 1) for line in lines)
    return tuple((wordnet_id, label) for wordnet_id, label in pairs)


def check_size(size: int | tuple[int, int]) -> tuple[int, int]:
    """Checks a size in pixels, and returns its height and width."""
    height_width: Any = (size, size) if np.ndim(size) == 0 else size
    if len(height_width) != 2 or any(
        not isinstance(side, int | np.integer) or side < 1
        for side in height_width
    ):
        raise ValueError(
            "size must be an integer greater than 0, or a pair of them "
            f"(height, width), in pixels. Received: size={size!r}."
        )
    height, width = height_width
    return int(height), int(width)


def geometry(
    height: Any,
    width: Any,
    size: tuple[int, int],
    crop_ratio: float,
    maximum: Callable[[Any, Any], Any],
) -> tuple[Any, Any, Any, Any]:
    """Computes where the evaluation transform resizes to and crops.

    Args:
        height, width: size of the image in pixels, ints or integer tensors.
        size: height and width of the crop in pixels.
        crop_ratio: float in (0, 1]. Share of the shorter side that is kept.
        maximum: function of two ints, or of a tensor and an int.

    Returns:
        Height and width of the resized image, and top and left of the crop,
        rounded as torchvision does: the longer side down, the corner half to
        even.

    Raises:
        ValueError: the crop ratio is out of its range.
    """
    if not (is_number(crop_ratio) and 0 < crop_ratio <= 1):
        raise ValueError(
            "crop_ratio must be greater than 0 and at most 1. "
            f"Received: crop_ratio={crop_ratio!r}."
        )
    rows, columns = (int(side / crop_ratio) for side in size)
    resized_height = maximum(columns * height // width, rows)
    resized_width = maximum(rows * width // height, columns)
    return (
        resized_height,
        resized_width,
        _half(resized_height - size[0]),
        _half(resized_width - size[1]),
    )


def _half(x: Any) -> Any:
    """`round(x / 2)`, half to even: 3 -> 2, 5 -> 2."""
    return (x + (x % 4) // 3) // 2


def _decode(source: Any, name: str, max_megapixels: float) -> np.ndarray:
    try:
        if isinstance(source, Image.Image):  # it may not be decoded yet
            return _rgb(source, name, max_megapixels)
        is_path = isinstance(source, str | os.PathLike)
        with open(source, "rb") if is_path else source as file:
            _check_exif(file, name)
            with Image.open(file, formats=FORMATS) as image:
                return _rgb(image, name, max_megapixels)
    except FileNotFoundError:
        advice = " Download it first." if "://" in name else ""
        raise ValueError(f"There is no image at {name}.{advice}") from None
    except Image.UnidentifiedImageError:
        raise ValueError(
            f"{name} is not an image of a known format, or is damaged. "
            f"Expected {', '.join(FORMATS)}. Convert other formats, such as "
            "HEIC, first."
        ) from None
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise ValueError(
            f"{name} has more than {limit:.0f} megapixels, which Pillow does "
            "not open. Shrink it, or raise PIL.Image.MAX_IMAGE_PIXELS and "
            "max_megapixels if you trust it."
        ) from None
    except _Refused as error:
        raise ValueError(str(error)) from None
    except Exception as error:  # decoders fail in many ways on broken files
        raise ValueError(
            f"{name} cannot be read as an image: {error}"
        ) from error


class _Refused(ValueError):
    """The image is readable, but too large, slow, empty or of unknown range."""


def _rgb(image: Image.Image, name: str, max_megapixels: float) -> np.ndarray:
    if 0 in image.size:
        raise _Refused(f"{name} has no pixels.")
    # A tile of a TIFF is decoded whole, and may be larger than the image.
    tags = getattr(image, "tag_v2", {})
    tile = tuple(tags.get(side, 0) for side in TILE_SIDES)
    width, height = max(image.size, tile, key=math.prod)
    if width * height > max_megapixels * 1e6:
        raise _Refused(
            f"{name} has {width} x {height} pixels, more than "
            f"{max_megapixels:g} megapixels. Shrink it, or raise "
            "max_megapixels if you trust it."
        )
    if _is_misread(image):
        raise _Refused(
            f"{name} is a {image.format} of a rare kind, which Pillow "
            "misreads. Convert it to PNG with another program."
        )
    if image.format in ("JPEG", "MPO"):
        _check_scans(image, name)
    # Pillow's time grows with the square of the comments among the pixels.
    if any(tile[0] == "ppm_plain" for tile in getattr(image, "tile", ())):
        raise _Refused(
            f"{name} holds its pixels as text, which is slow to decode. "
            "Convert it to PNG."
        )
    if image.mode == "L":
        # Pillow colors a gray GIF by the palette that its frame replaces.
        image.palette = None
    image.load()
    turn = TURNS.get(_orientation(image))
    if turn is not None:
        image = image.transpose(turn)
    # Pillow takes 32 bits for some images of 16.
    extrema: Any = image.getextrema() if image.mode == "I" else (0, 0)
    if image.mode == "F" or min(extrema) < 0 or max(extrema) > 65535:
        kind = "floating-point" if image.mode == "F" else "32-bit"
        raise _Refused(
            f"{name} holds {kind} pixels, whose range is unknown. "
            "Scale them to 0...255 and pass a uint8 array."
        )
    pixels = np.empty((image.height, image.width, 3), "uint8")
    # In strips, as Pillow's conversions take several times the memory.
    rows = max(2**20 // image.width, 1)
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        strip = image.crop((0, top, image.width, bottom))
        pixels[top:bottom] = _rgb_of_strip(strip)
    return pixels


def _is_misread(image: Image.Image) -> bool:
    """Whether Pillow takes the pixels of a file for others."""
    if image.format == "BMP" and image.mode == "1":
        # Black and white in 4 or 8 bits, taken for 1 bit.
        row = (image.width + 31) // 32 * 4
        return any(tile[3][1] > row for tile in getattr(image, "tile", ()))
    tags = getattr(image, "tag_v2", {})
    is_planar = tags.get(PLANAR) == 2 and tags.get(COMPRESSION, 1) == 1
    return (
        # The preview of a camera's raw image.
        (tags.get(IS_PREVIEW) == 1 and INNER_IMAGES in tags)
        # 16 bits from white to black, taken for black to white.
        or (image.mode == "I;16" and tags.get(PHOTOMETRIC) == 0)
        # Signed bytes, taken for unsigned ones.
        or (image.mode == "L" and tags.get(SAMPLE_FORMAT) == (2,))
        # 16 bits, one channel after another, taken for 8 bits.
        or (is_planar and max(tags.get(BITS, (1,))) > 8)
    )


def _rgb_of_strip(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):  # 16 bits; Pillow would cut at 255
        return _rgb_of_array(np.asarray(image).astype("uint16"))
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _rgb_of_array(image: np.ndarray) -> np.ndarray:
    if image.ndim == 2:
        image = image[..., None]
    if (
        image.dtype not in (np.uint8, np.uint16)
        or image.ndim != 3
        or image.shape[-1] not in (1, 3, 4)
        or 0 in image.shape
    ):
        raise ValueError(
            "An image must be a path, bytes, a Pillow image, or a uint8 or "
            "uint16 array (height, width) or (height, width, 1, 3 or 4). "
            f"Received: {image.dtype} of shape {image.shape}."
        )
    if image.dtype == np.uint16:
        image = (image / 257).round().astype("uint8")
    return np.repeat(image, 3, 2) if image.shape[-1] == 1 else image[..., :3]


def _check_exif(file: BinaryIO, name: str) -> None:
    if file.read(2) == b"\xff\xd8" and file.read().count(EXIF) > MAX_EXIF:
        raise _Refused(
            f"{name} is a JPEG with EXIF in more than {MAX_EXIF} parts. Save "
            "it again without EXIF."
        )
    file.seek(0)


def _check_scans(image: Image.Image, name: str) -> None:
    file = getattr(image, "fp", None)
    if file is None:  # it has been decoded
        return
    position = file.tell()
    file.seek(0)
    data = file.read()
    file.seek(position)
    if data.count(b"\xff\xda") <= MAX_SCANS:
        return
    # If the first scan holds all components, no other is decoded.
    at = 2
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] != b"\xda":
        is_fill = data[at + 1 : at + 2] == b"\xff"
        length = int.from_bytes(data[at + 2 : at + 4])
        at += 1 if is_fill else 2 + length
    components = data[at + 4 : at + 5]
    if "progressive" in image.info or components != bytes(
        [len(image.getbands())]
    ):
        raise _Refused(
            f"{name} is a JPEG of more than {MAX_SCANS} scans. Save it again "
            "as a baseline JPEG."
        )


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1 if none can be read.

    As in `keras_cait.decoding.orientation`. Not `Image.getexif`, which also
    searches other metadata and stops at a damaged entry, as browsers do not.
    """
    # Some programs write the prefix of a JPEG in a PNG, where Pillow adds it.
    tiff = image.info.get("exif", b"").removeprefix(EXIF).removeprefix(EXIF)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    tiff += bytes(12)  # what is read behind the end is 0: no tag
    found = [1]
    with suppress(struct.error):
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, start)
        for at in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, number = struct.unpack_from(f"{order}HHI", tiff, at)
            if tag == ORIENTATION and kind in INTEGERS and number == 1:
                value = f"{order}{INTEGERS[kind]}"
                found += struct.unpack_from(value, tiff, at + 8)
    return max(found)


def _taps(
    size: int, new_size: int, start: int, count: int
) -> tuple[int, np.ndarray]:
    """Pillow's weights for one axis, for output pixels from `start` on.

    Returns:
        The first input pixel that has a weight, and float64 `(count, taps)`.

    Reference: `keras_cait.decoding`, which has the same formulas.
    """
    scale = size / new_size
    widened = max(scale, 1.0)  # shrinking averages: the antialiasing
    centers = (start + np.arange(count) + 0.5) * scale
    first = max(int(centers[0] - 2 * widened), 0)
    last = min(int(centers[-1] + 2 * widened) + 1, size)
    x = np.abs(np.arange(first, last) + 0.5 - centers[:, None]) / widened
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5
    weights = np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))
    weights /= weights.sum(axis=1, keepdims=True)
    return first, np.round(weights * 2.0**22) * 2.0**-22


def _to_8_bits(image: np.ndarray) -> np.ndarray:
    return np.clip(np.floor(image + 0.5), 0, 255).astype("uint8")
