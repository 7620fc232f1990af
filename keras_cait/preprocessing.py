"""Pictures to pixels, pixels to the model's inputs, probabilities to labels.

The only home of pixel semantics: how a file becomes RGB, how it is resized,
cropped and normalised. CaiT is evaluated on the whole shorter side (crop ratio
1.0), resized by Pillow's antialiased bicubic.
"""

import functools
import io
from importlib import resources
from pathlib import Path

import numpy as np
from keras import ops
from PIL import Image, ImageOps

from keras_cait.layers import bicubic_weights

# ImageNet's mean and standard deviation of RGB, for pixels in 0...1.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def load_image(source):
    """Reads a picture as 8-bit RGB.

    Gray, palette, CMYK and 16-bit pictures become RGB, transparency is
    dropped, and a photo is turned upright by its EXIF orientation. Of an
    animation it is the first frame.

    Args:
        source: path (str or path-like) or bytes of an encoded picture, a
            Pillow image, or an array of uint8 (0...255) or uint16 (0...65535),
            `(height, width)` or `(height, width, channels)` with 1, 3 (RGB) or
            4 (RGBA) channels.

    Returns:
        uint8 array `(height, width, 3)`, RGB in 0...255.

    Raises:
        ValueError: there is no picture to read; the message names the file.

    Example:
    >>> load_image(np.zeros((48, 64), "uint8")).shape
    (48, 64, 3)
    """
    if isinstance(source, Image.Image):
        return _rgb(source, "the Pillow image")
    if isinstance(source, bytes | bytearray | memoryview):
        return _decode(io.BytesIO(source), f"{len(source)} bytes")
    if isinstance(source, str | Path) or hasattr(source, "__fspath__"):
        return _decode(source, repr(str(source)))
    return _rgb_of_array(np.asarray(source))


def resize_and_crop(image, size, crop_ratio=1.0):
    """The evaluation transform: resizes a picture and cuts out its centre.

    Equal, pixel for pixel, to torchvision's `Resize(size / crop_ratio,
    BICUBIC)` and `CenterCrop(size)` on Pillow images, and so to timm's. Smaller
    pictures are enlarged. For a size that is not square the picture is resized
    to just cover it.

    Args:
        image: uint8 array `(height, width, 3)`, as from `load_image`.
        size: int, or pair of ints `(height, width)`, in pixels.
        crop_ratio: float in (0, 1]. Share of the shorter side that is kept.

    Returns:
        uint8 array `(size, size, 3)`, or of the given height and width.

    Raises:
        ValueError: an argument is out of its range, or the picture is so
            narrow that it would be resized to more pixels than Pillow allows.

    Example:
    >>> image = np.zeros((375, 500, 3), "uint8")
    >>> resize_and_crop(image, 224).shape
    (224, 224, 3)

    Reference: README_cait.md of facebookresearch/deit (crop ratio 1.0).
    """
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(
            "image must be a uint8 array (height, width, 3). Received: "
            f"{image.dtype} of shape {image.shape}. load_image makes one."
        )
    height, width = _size(size)
    rows, columns, _ = image.shape
    resized_height, resized_width, top, left = _geometry(
        rows, columns, (height, width), crop_ratio, max
    )
    limit = Image.MAX_IMAGE_PIXELS or float("inf")
    if resized_height * resized_width > limit:
        raise ValueError(
            f"The picture is too long and narrow: {image.shape[0]} x "
            f"{image.shape[1]} pixels would be resized to {resized_height} x "
            f"{resized_width}, more than Image.MAX_IMAGE_PIXELS. Crop it first."
        )
    resized = Image.fromarray(image).resize(
        (resized_width, resized_height), Image.Resampling.BICUBIC
    )
    return np.array(resized.crop((left, top, left + width, top + height)))


def resize_and_crop_in_graph(image, size, crop_ratio=1.0):
    """`resize_and_crop` in a graph of the backend, as for serving.

    Pillow's resize is a product with a matrix for the columns and one for the
    rows, rounded to 8 bits after each. So written, at most 0.04 % of the values
    of a test picture differ from `resize_and_crop`, by one level (6 pictures,
    sizes 224 and 384, crop ratios 1 and 0.875). In the same places
    `tf.image.resize(..., "bicubic", antialias=True)`, rounded and clipped,
    differs in 2 to 18 % of the values, by up to 2 levels where it shrinks and
    11 where it enlarges. It takes half the time (3 instead of 7 ms for a
    500 x 375 photo on 2 cores; Pillow 2 ms).

    Args:
        image: tensor `(height, width, channels)`, pixels in 0...255, of a size
            that may only be known when the graph runs.
        size: int, or pair of ints `(height, width)`, in pixels.
        crop_ratio: float in (0, 1]. Share of the shorter side that is kept.

    Returns:
        float32 tensor `(size, size, channels)`, whole numbers in 0...255.

    Raises:
        ValueError: an argument is out of its range.

    Example:
    >>> image = np.zeros((375, 500, 3), "uint8")
    >>> tuple(resize_and_crop_in_graph(image, 224).shape)
    (224, 224, 3)
    """
    size = _size(size)
    image = ops.cast(image, "float32")
    height, width, channels = ops.shape(image)
    known = isinstance(height, int) and isinstance(width, int)
    resized_height, resized_width, top, left = _geometry(
        height, width, size, crop_ratio, max if known else ops.maximum
    )
    rows = bicubic_weights(height, resized_height)[top : top + size[0]]
    columns = bicubic_weights(width, resized_width)[left : left + size[1]]
    image = ops.reshape(ops.transpose(image, (1, 0, 2)), (width, -1))
    image = _to_8_bits(ops.matmul(columns, image))
    image = ops.reshape(image, (size[1], height, channels))
    image = ops.reshape(ops.transpose(image, (1, 0, 2)), (height, -1))
    image = _to_8_bits(ops.matmul(rows, image))
    return ops.reshape(image, (*size, channels))


def preprocess_input(x):
    """Normalises RGB with ImageNet's mean and standard deviation.

    For models built with `include_preprocessing=False`; the others do it
    themselves.

    Args:
        x: array or tensor `(..., 3)`, RGB in 0...255.

    Returns:
        float32 array, or tensor if `x` is one, of the same shape.

    Raises:
        ValueError: the last axis does not have 3 channels.

    Example:
    >>> white = preprocess_input(np.full((224, 224, 3), 255))
    >>> round(float(white.max()), 2)
    2.64
    """
    if x.shape[-1] != 3:
        raise ValueError(
            "preprocess_input needs RGB, 3 channels in the last axis. "
            f"Received: shape {tuple(x.shape)}."
        )
    is_array = isinstance(x, np.ndarray)
    x = x.astype("float32") if is_array else ops.cast(x, "float32")
    mean = np.array(IMAGENET_MEAN, "float32")
    return (x / 255.0 - mean) / np.array(IMAGENET_STD, "float32")


def decode_predictions(probabilities, top=5):
    """The most probable ImageNet classes of each picture.

    Args:
        probabilities: array or tensor `(batch, 1000)`: what a model with
            ImageNet's classes answers.
        top: int in 1...1000. How many classes for each picture.

    Returns:
        For each picture a list of `(wordnet_id, label, score)`, best first.

    Raises:
        ValueError: the shape does not fit, or `top` is out of its range.

    Example:
    >>> decode_predictions(np.eye(1000)[[1]], top=1)
    [[('n01443537', 'goldfish', 1.0)]]

    Reference: identifiers in the order of ILSVRC 2012; labels are the first
    word of each WordNet 3.0 synset, made unique in five places (two cranes,
    two maillots, the Cardigan Welsh corgi).
    """
    probabilities = ops.convert_to_numpy(probabilities)
    if probabilities.ndim != 2 or probabilities.shape[1] != 1000:
        raise ValueError(
            "decode_predictions needs probabilities of ImageNet's classes, "
            f"(batch, 1000). Received: shape {probabilities.shape}. Of a model "
            "with other classes, sort the scores by your own labels."
        )
    if not isinstance(top, int) or not 1 <= top <= 1000:
        raise ValueError(
            f"top must be an integer in 1...1000. Received: top={top!r}."
        )
    labels = imagenet_labels()
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
    return [
        [(*labels[index], float(scores[index])) for index in indices]
        for indices, scores in zip(best, probabilities, strict=True)
    ]


@functools.cache
def imagenet_labels():
    """ImageNet's 1000 classes in order, as `(wordnet_id, label)`.

    Example:
    >>> imagenet_labels()[0]
    ('n01440764', 'tench')
    """
    file = resources.files("keras_cait") / "imagenet_labels.txt"
    lines = file.read_text(encoding="utf-8").splitlines()
    return tuple(tuple(line.split(" ", 1)) for line in lines)


def _decode(file, name):
    try:
        with Image.open(file) as image:
            return _rgb(image, name)
    except FileNotFoundError:
        raise ValueError(f"There is no picture at {name}.") from None
    except Image.UnidentifiedImageError:
        raise ValueError(f"{name} is not a picture, or is damaged.") from None
    except Exception as error:  # decoders fail in many ways on broken files
        raise ValueError(f"Cannot read the picture {name}: {error}") from error


def _rgb(image, name):
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError(
            f"{name} holds floating-point pixels, whose range is unknown. "
            "Scale them to 0...255 and pass a uint8 array."
        )
    if image.mode.startswith("I"):  # 16 bits; Pillow would cut at 255
        return _rgb_of_array(np.asarray(image).clip(0, 65535).astype("uint16"))
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))


def _rgb_of_array(image):
    if image.ndim == 2:
        image = image[..., None]
    if (
        image.dtype not in (np.uint8, np.uint16)
        or image.ndim != 3
        or image.shape[-1] not in (1, 3, 4)
        or 0 in image.shape
    ):
        raise ValueError(
            "A picture must be a path, bytes, a Pillow image, or a uint8 or "
            "uint16 array (height, width) or (height, width, 1, 3 or 4). "
            f"Received: {image.dtype} of shape {image.shape}."
        )
    if image.dtype == np.uint16:
        image = (image / 257).round().astype("uint8")
    return np.repeat(image, 3, 2) if image.shape[-1] == 1 else image[..., :3]


def _size(size):
    height_width = (size, size) if np.ndim(size) == 0 else tuple(size)
    if len(height_width) != 2 or any(
        not isinstance(side, int | np.integer) or side < 1
        for side in height_width
    ):
        raise ValueError(
            "size must be an integer greater than 0, or a pair of them "
            f"(height, width), in pixels. Received: size={size!r}."
        )
    return tuple(int(side) for side in height_width)


def _geometry(height, width, size, crop_ratio, maximum):
    """Resized height and width, and the upper left corner of the crop.

    In whole numbers, which may be tensors, and rounded as torchvision does:
    the longer side down, the corner half to even.
    """
    if not 0 < crop_ratio <= 1:
        raise ValueError(
            "crop_ratio must be greater than 0 and at most 1. "
            f"Received: crop_ratio={crop_ratio}."
        )
    rows, columns = (int(side / crop_ratio) for side in size)
    resized_height = maximum(rows, columns * height // width)
    resized_width = maximum(columns, rows * width // height)
    return (
        resized_height,
        resized_width,
        _half(resized_height - size[0]),
        _half(resized_width - size[1]),
    )


def _half(x):
    """`round(x / 2)`, half to even: 3 -> 2, 5 -> 2."""
    return (x + (x % 4) // 3) // 2


def _to_8_bits(image):
    return ops.clip(ops.floor(image + 0.5), 0.0, 255.0)
