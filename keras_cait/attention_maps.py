"""Where a CaiT looks: attention maps, saliency maps and figures of them.

A block returns its attention scores when it is called directly. The functions
run the model up to the inputs of the blocks they need and call those blocks.
"""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import ops
from PIL import Image

from keras_cait.blocks import ClassAttentionBlock, SelfAttentionBlock
from keras_cait.layers import PositionEmbedding, Tensor, is_number

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def class_attention_maps(model: keras.Model, images: Tensor) -> np.ndarray:
    """Returns how the class token attends to each patch, per head.

    The class token also attends to itself. That score is left out and nothing
    is renormalized: a map sums to 1 minus the attention to the class token.

    Args:
        model: a `CaiT`, or a Functional model made of its layers, for images
            of any size.
        images: array or tensor `(batch, height, width, channels)`, as for the
            model.

    Returns:
        float32 array `(batch, class_attention_depth, heads, rows, columns)` of
        scores in 0...1, with a row and column per patch.

    Raises:
        ValueError: the model has no class attention, or the images do not fit.

    Example:
    >>> model = CaiT(48, depth=1, num_heads=4, input_shape=(64, 96, 3))
    >>> class_attention_maps(model, np.zeros((2, 64, 96, 3))).shape
    (2, 2, 4, 4, 6)

    Reference: Touvron et al., 2021, figure 6.
    """
    blocks = layers_of_kind(model, ClassAttentionBlock)
    scores, (rows, columns) = _scores(model, images, blocks)
    maps = np.stack(scores, axis=1)[..., 0, 1:]  # (B, blocks, H, patches)
    return maps.reshape(*maps.shape[:3], rows, columns)


def saliency_maps(model: keras.Model, images: Tensor) -> np.ndarray:
    """Returns one map per image of where the class token looks.

    It is the mean over the heads of the first class-attention block, which
    follows the objects in the image (the second one sees more of the context).
    In each image, the least salient patch is 0 and the most salient one is 1.

    Args:
        model: as in `class_attention_maps`.
        images: array or tensor `(batch, height, width, channels)`.

    Returns:
        float32 array `(batch, rows, columns)` in 0...1.

    Raises:
        ValueError: the model has no class attention, or the images do not fit.

    Example:
    >>> model = CaiT(48, depth=1, num_heads=4, input_shape=(64, 96, 3))
    >>> saliency_maps(model, np.zeros((2, 64, 96, 3))).shape
    (2, 4, 6)

    Reference: Touvron et al., 2021, figure 7.
    """
    first_block = class_attention_maps(model, images)[:, 0]
    return np.stack([_stretch(maps.mean(axis=0)) for maps in first_block])


def self_attention_maps(
    model: keras.Model, images: Tensor, block: int
) -> np.ndarray:
    """Returns how each patch attends to each patch in one block.

    These are the scores that weight the values, after the second mixing of the
    heads: they can be negative, and they do not sum to 1. The class token of a
    ViT is left out.

    Args:
        model: as in `class_attention_maps`, or a `baselines.ViT`.
        images: array or tensor `(batch, height, width, channels)`.
        block: index of the self-attention block. -1 is the last.

    Returns:
        float32 array `(batch, heads, rows, columns, rows, columns)`: the
        attention of the patch in one row and column to that in another.

    Raises:
        ValueError: there is no such block, or the images do not fit.

    Example:
    >>> model = CaiT(48, depth=1, num_heads=4, input_shape=(64, 96, 3))
    >>> images = np.zeros((2, 64, 96, 3))
    >>> self_attention_maps(model, images, -1).shape
    (2, 4, 4, 6, 4, 6)

    Reference: Touvron et al., 2021, section 4.
    """
    blocks = layers_of_kind(model, SelfAttentionBlock)
    chosen = blocks[_index(block, blocks)]
    (scores,), grid = _scores(model, images, [chosen])
    patches = math.prod(grid)
    scores = scores[:, :, -patches:, -patches:]  # without a class token
    return scores.reshape(*scores.shape[:2], *grid, *grid)


def intermediate_features(
    model: keras.Model, layers: str | int | Sequence[str | int]
) -> keras.Model:
    """Makes a model that returns features from inside a model.

    Args:
        model: a `CaiT`, or a Functional model made of its layers.
        layers: name of a layer, such as `"self_attention_block_3"`, or index of
            a self-attention block (-1 is the last), or a list of these.

    Returns:
        A `keras.Model` with the same input and weights. Its output is that of
        the layer, or a list of them. The output of a self-attention block is
        `(batch, patches, embed_dim)`, with the patches in row-major order.

    Raises:
        ValueError: there is no such layer.

    Example:
    >>> model = CaiT(48, depth=3, num_heads=4, input_shape=(64, 96, 3))
    >>> features = intermediate_features(model, [0, -1, "class_token"])
    >>> [tuple(x.shape) for x in features(np.zeros((2, 64, 96, 3)))]
    [(2, 24, 48), (2, 24, 48), (2, 1, 48)]
    """
    if isinstance(layers, str) or not isinstance(layers, Iterable):
        outputs = _layer(model, layers).output
    else:
        outputs = [_layer(model, layer).output for layer in layers]
    return keras.Model(model.input, outputs)


def overlay(
    image: np.ndarray, attention: np.ndarray, opacity: float = 0.6
) -> np.ndarray:
    """Draws a map over an image, dark where there is little attention.

    Args:
        image: uint8 array `(height, width, 3)`, RGB.
        attention: array `(rows, columns)` of any range, such as one map of
            `saliency_maps` or of one head.
        opacity: float in 0...1. How much of the image the map hides.

    Returns:
        uint8 array `(height, width, 3)`, RGB.

    Raises:
        ValueError: a shape or dtype does not fit, or `opacity` is out of range.

    Example:
    >>> image = np.full((224, 224, 3), 255, "uint8")
    >>> overlay(image, np.eye(14)).shape
    (224, 224, 3)
    """
    image = np.asarray(image)
    attention = np.asarray(attention)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(
            "image must be a uint8 array (height, width, 3). Received: "
            f"{image.dtype} of shape {image.shape}. load_image makes one."
        )
    if attention.ndim != 2:
        raise ValueError(
            "attention must be one map (rows, columns). Received: shape "
            f"{attention.shape}. Select an image, a block and a head."
        )
    if not (is_number(opacity) and 0 <= opacity <= 1):
        raise ValueError(f"opacity must be in 0...1. Received: {opacity!r}.")
    height, width, _ = image.shape
    smooth = np.asarray(
        Image.fromarray(_stretch(attention)).resize(
            (width, height), Image.Resampling.BICUBIC
        )
    )
    heat = np.stack(
        [np.interp(smooth, HEAT[:, 0], HEAT[:, i]) for i in (1, 2, 3)], axis=-1
    )
    return ((1 - opacity) * image + opacity * heat).round().astype("uint8")


# Attention | red, green, blue. Brightness increases evenly.
HEAT = np.array(
    [
        (0.0, 10, 5, 40),
        (0.3, 95, 20, 110),
        (0.6, 215, 60, 65),
        (0.8, 250, 150, 25),
        (1.0, 255, 250, 170),
    ]
)


def figure(image: np.ndarray, maps: np.ndarray) -> "Figure":
    """Draws all class-attention maps of one image. Needs matplotlib.

    The first column holds the image and its saliency. The others hold the maps:
    a row per block and a column per head, each map scaled to its own range.

    Args:
        image: uint8 array `(height, width, 3)`, RGB.
        maps: array `(class_attention_depth, heads, rows, columns)` of one
            image, from `class_attention_maps`.

    Returns:
        A `matplotlib.figure.Figure`, to be saved with `savefig`.

    Raises:
        ValueError: a shape or dtype does not fit.

    Example:
    >>> image = np.full((224, 224, 3), 255, "uint8")
    >>> drawn = figure(image, np.ones((2, 4, 14, 14)))
    >>> len(drawn.axes)
    10
    """
    from matplotlib.figure import Figure

    image, maps = np.asarray(image), np.asarray(maps)
    if maps.ndim != 4:
        raise ValueError(
            "maps must be those of one image, (class_attention_depth, heads, "
            f"rows, columns). Received: shape {maps.shape}."
        )
    depth, num_heads = maps.shape[:2]
    panels = {
        (block, 1 + head): (
            overlay(image, maps[block, head]),
            f"block {block}, head {head}",
        )
        for block in range(depth)
        for head in range(num_heads)
    }
    panels[0, 0] = image, "image"
    panels[1, 0] = overlay(image, maps[0].mean(axis=0)), "saliency"

    grid = (max(depth, 2), 1 + num_heads)
    height = 0.3 + 1.8 * image.shape[0] / image.shape[1]  # inches, with title
    drawn = Figure((1.8 * grid[1], height * grid[0]), layout="constrained")
    for (row, column), (pixels, title) in panels.items():
        axes = drawn.add_subplot(*grid, 1 + row * grid[1] + column)
        axes.imshow(pixels)
        axes.set_title(title, fontsize=9)
        axes.set_axis_off()
    return drawn


def _scores(
    model: keras.Model, images: Tensor, blocks: Sequence[keras.layers.Layer]
) -> tuple[list[np.ndarray], tuple[int, int]]:
    """Returns the scores `(batch, heads, queries, keys)` of each block, and
    the grid of the patches.
    """
    (positions,) = layers_of_kind(model, PositionEmbedding)
    upstream = keras.Model(
        model.input, [positions.input, [block.input for block in blocks]]
    )
    patches, inputs = upstream(
        ops.convert_to_tensor(checked(images)), training=False
    )
    scores = []
    for block, tokens in zip(blocks, inputs, strict=True):
        tokens = tokens if isinstance(tokens, list | tuple) else [tokens]
        _, block_scores = block(*tokens, return_attention_scores=True)
        scores.append(ops.convert_to_numpy(ops.cast(block_scores, "float32")))
    _, rows, columns, _ = patches.shape
    return scores, (rows, columns)


def checked(images: Any) -> np.ndarray:
    """A batch of images as an array.

    Raises:
        ValueError: it is something else, such as a path or a single image.
    """
    try:
        array = ops.convert_to_numpy(images)
    except ValueError:  # of several shapes, such as images with their labels
        array = np.array(None)
    if array.ndim != 4 or array.dtype.kind in "OSU":
        raise ValueError(
            "images must be an array (batch, height, width, channels). "
            f"Received: {type(images).__name__} of shape {array.shape}. For "
            "one image, use image[None]; load_image reads a file."
        )
    return array


def layers_of_kind(model: keras.Model, kind: type) -> list[Any]:
    """The layers of one class in a model, from first to last.

    Raises:
        ValueError: it has none.
    """
    layers = getattr(model, "layers", ())
    layers = [layer for layer in layers if isinstance(layer, kind)]
    if not layers:
        name = getattr(model, "name", type(model).__name__)
        raise ValueError(
            f"The model {name!r} has no {kind.__name__} among its layers. Pass "
            "the CaiT itself. If it is inside another model, use "
            'model.get_layer(...). Models with pooling="avg" have no class '
            "attention."
        )
    return layers


def _layer(model: keras.Model, name_or_index: str | int) -> keras.layers.Layer:
    if isinstance(name_or_index, int | np.integer):
        blocks = layers_of_kind(model, SelfAttentionBlock)
        return blocks[_index(name_or_index, blocks)]
    names = [layer.name for layer in model.layers]
    if name_or_index not in names:
        raise ValueError(
            f"The model {model.name!r} has no layer {name_or_index!r}. It has: "
            f"{', '.join(names)}."
        )
    return model.get_layer(name_or_index)


def _index(index: int, blocks: list[Any]) -> int:
    is_integer = isinstance(index, int | np.integer)
    if not is_integer or not -len(blocks) <= index < len(blocks):
        raise ValueError(
            f"The model has {len(blocks)} self-attention blocks, 0 to "
            f"{len(blocks) - 1}, or -1 for the last. Received: {index!r}."
        )
    return index


def _stretch(attention: np.ndarray) -> np.ndarray:
    """Scales one map to 0...1. A constant map becomes 0, and so does NaN."""
    attention = np.nan_to_num(np.asarray(attention, "float32"))
    low, high = attention.min(), attention.max()
    return (attention - low) / max(high - low, np.finfo("float32").tiny)
