"""Where a CaiT looks: attention maps, saliency and pictures of them.

The blocks return their attention scores when they are called directly. So each
function runs the model up to the inputs of the blocks it is asked for, and then
calls these blocks.
"""

import math

import keras
import numpy as np
from keras import ops
from PIL import Image

from keras_cait.blocks import ClassAttentionBlock, SelfAttentionBlock
from keras_cait.layers import PositionEmbedding


def class_attention_maps(model, images):
    """How the class token attends to each patch, for each head.

    The class token also attends to itself; that column is left out and nothing
    is renormalised, so a map sums to 1 minus the attention to itself.

    Args:
        model: a `CaiT`, or a Functional model made of its layers, with any
            size of images.
        images: array or tensor `(batch, height, width, channels)`, as the
            model takes them.

    Returns:
        float32 array `(batch, class_attention_depth, heads, rows, columns)` of
        scores in 0...1; `rows` and `columns` of patches.

    Raises:
        ValueError: the model has no class attention, or the images do not fit.

    Example:
    >>> model = CaiT(48, depth=1, num_heads=4, input_shape=(64, 96, 3))
    >>> class_attention_maps(model, np.zeros((2, 64, 96, 3))).shape
    (2, 2, 4, 4, 6)

    Reference: Touvron et al., 2021, figure 6.
    """
    blocks = _layers(model, ClassAttentionBlock)
    scores, (rows, columns) = _scores(model, images, blocks)
    maps = np.stack(scores, axis=1)[..., 0, 1:]  # (B, blocks, H, patches)
    return maps.reshape(*maps.shape[:3], rows, columns)


def saliency_maps(model, images):
    """One map for each image: what the classification looks at.

    The mean over the heads of the first class-attention block, which follows
    the objects in the image (the second one sees more of the context), scaled
    for each image so that its least salient patch is 0 and its most salient 1.

    Args:
        model: as of `class_attention_maps`.
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


def self_attention_maps(model, images, block):
    """How every patch attends to every patch in one self-attention block.

    These are the scores that weigh the values, after the second mixing of the
    heads, so they may be negative and their sums are not 1.

    Args:
        model: as of `class_attention_maps`.
        images: array or tensor `(batch, height, width, channels)`.
        block: int. Index of the block; -1 is the last.

    Returns:
        float32 array `(batch, heads, rows, columns, rows, columns)`: for the
        patch in a row and column, its attention to each row and column.

    Raises:
        ValueError: there is no such block, or the images do not fit.

    Example:
    >>> model = CaiT(48, depth=1, num_heads=4, input_shape=(64, 96, 3))
    >>> images = np.zeros((2, 64, 96, 3))
    >>> self_attention_maps(model, images, -1).shape
    (2, 4, 4, 6, 4, 6)

    Reference: Touvron et al., 2021, section 4.
    """
    blocks = _layers(model, SelfAttentionBlock)
    chosen = blocks[_index(block, blocks)]
    (scores,), grid = _scores(model, images, [chosen])
    patches = math.prod(grid)
    scores = scores[:, :, -patches:, -patches:]  # a ViT's class token is first
    return scores.reshape(*scores.shape[:2], *grid, *grid)


def intermediate_features(model, layers):
    """A model of the features inside a model.

    Args:
        model: a `CaiT`, or a Functional model made of its layers.
        layers: name of a layer, as `"self_attention_block_3"`, or index of a
            self-attention block (-1 is the last), or a list of these.

    Returns:
        A `keras.Model` with the same input and weights; its output is that of
        the layer, or a list of them. A self-attention block gives
        `(batch, patches, embed_dim)`, row after row of patches.

    Raises:
        ValueError: there is no such layer.

    Example:
    >>> model = CaiT(48, depth=3, num_heads=4, input_shape=(64, 96, 3))
    >>> features = intermediate_features(model, [0, -1, "class_token"])
    >>> [tuple(x.shape) for x in features(np.zeros((2, 64, 96, 3)))]
    [(2, 24, 48), (2, 24, 48), (2, 1, 48)]
    """
    if isinstance(layers, list | tuple):
        outputs = [_layer(model, layer).output for layer in layers]
    else:
        outputs = _layer(model, layers).output
    return keras.Model(model.input, outputs)


def overlay(image, attention, opacity=0.6):
    """A picture with a map over it, dark where there is little attention.

    Args:
        image: uint8 array `(height, width, 3)`, RGB.
        attention: array `(rows, columns)` of any range, as one map of
            `saliency_maps` or of one head.
        opacity: float in 0...1. How much the map hides of the picture.

    Returns:
        uint8 array `(height, width, 3)`, RGB.

    Raises:
        ValueError: a shape or dtype does not fit.

    Example:
    >>> picture = np.full((224, 224, 3), 255, "uint8")
    >>> overlay(picture, np.eye(14)).shape
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
            f"{attention.shape}. Choose an image, a block and a head."
        )
    height, width, _ = image.shape
    smooth = Image.fromarray(_stretch(attention)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    heat = np.stack(
        [np.interp(smooth, HEAT[:, 0], HEAT[:, i]) for i in (1, 2, 3)], axis=-1
    )
    return ((1 - opacity) * image + opacity * heat).round().astype("uint8")


# From dark to bright, evenly: attention, red, green, blue.
HEAT = np.array(
    [
        (0.0, 10, 5, 40),
        (0.3, 95, 20, 110),
        (0.6, 215, 60, 65),
        (0.8, 250, 150, 25),
        (1.0, 255, 250, 170),
    ]
)


def figure(image, maps):
    """A picture of all class-attention maps of one image.

    On the left the picture and its saliency, then a row for each block and a
    column for each head, every map scaled to its own range. Needs matplotlib.

    Args:
        image: uint8 array `(height, width, 3)`, RGB.
        maps: array `(class_attention_depth, heads, rows, columns)`: those of
            one image, from `class_attention_maps`.

    Returns:
        A `matplotlib.figure.Figure`; `figure(...).savefig("attention.png")`.

    Raises:
        ValueError: a shape or dtype does not fit.

    Example:
    >>> picture = np.full((224, 224, 3), 255, "uint8")
    >>> drawn = figure(picture, np.ones((2, 4, 14, 14)))
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
    pictures = {
        (block, 1 + head): (
            overlay(image, maps[block, head]),
            f"block {block}, head {head}",
        )
        for block in range(depth)
        for head in range(num_heads)
    }
    pictures[0, 0] = image, "picture"
    pictures[1, 0] = overlay(image, maps[0].mean(axis=0)), "saliency"

    grid = (max(depth, 2), 1 + num_heads)
    height = 0.3 + 1.8 * image.shape[0] / image.shape[1]  # inches, with title
    drawn = Figure((1.8 * grid[1], height * grid[0]), layout="constrained")
    for (row, column), (pixels, title) in pictures.items():
        axes = drawn.add_subplot(*grid, 1 + row * grid[1] + column)
        axes.imshow(pixels)
        axes.set_title(title, fontsize=9)
        axes.set_axis_off()
    return drawn


def _scores(model, images, blocks):
    """The scores of some blocks, `(batch, heads, queries, keys)`, and the grid.

    One pass up to the inputs of these blocks, then a call of each.
    """
    (positions,) = _layers(model, PositionEmbedding)
    upstream = keras.Model(
        model.input, [positions.input, [block.input for block in blocks]]
    )
    patches, inputs = upstream(ops.convert_to_tensor(images), training=False)
    scores = []
    for block, tokens in zip(blocks, inputs, strict=True):
        tokens = tokens if isinstance(tokens, list | tuple) else [tokens]
        _, block_scores = block(*tokens, return_attention_scores=True)
        scores.append(ops.convert_to_numpy(ops.cast(block_scores, "float32")))
    return scores, tuple(patches.shape[1:3])


def _layers(model, kind):
    layers = [layer for layer in model.layers if isinstance(layer, kind)]
    if not layers:
        raise ValueError(
            f"The model {model.name!r} has no {kind.__name__} among its "
            "layers. Pass the CaiT itself; inside another model it is "
            "model.get_layer(...)."
        )
    return layers


def _layer(model, name_or_index):
    if isinstance(name_or_index, int):
        blocks = _layers(model, SelfAttentionBlock)
        return blocks[_index(name_or_index, blocks)]
    names = [layer.name for layer in model.layers]
    if name_or_index not in names:
        raise ValueError(
            f"The model {model.name!r} has no layer {name_or_index!r}. It has: "
            f"{', '.join(names)}."
        )
    return model.get_layer(name_or_index)


def _index(index, blocks):
    if not isinstance(index, int) or not -len(blocks) <= index < len(blocks):
        raise ValueError(
            f"The model has {len(blocks)} self-attention blocks, 0 to "
            f"{len(blocks) - 1}, or -1 for the last. Received: {index!r}."
        )
    return index


def _stretch(attention):
    """Scales one map to 0...1; a map without differences becomes 0."""
    attention = np.asarray(attention, "float32")
    low, high = attention.min(), attention.max()
    return (attention - low) / max(high - low, np.finfo("float32").tiny)
