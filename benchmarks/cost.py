"""Multiply-adds and parameters of a variant, computed from its sizes."""

from keras_cait.models import VARIANTS


def multiply_adds(variant: str, image_size: int) -> int:
    """Multiply-adds of one forward pass of one image, counted as timm does.

    These are matrix products, the patch convolution, and 5 per element that a
    LayerNorm normalizes.

    Args:
        variant: key of `VARIANTS`.
        image_size: height and width in pixels.

    Example:
    >>> round(multiply_adds("S24", 224) / 1e9, 2)
    9.35
    """
    config = VARIANTS[variant]
    width, heads = config.embed_dim, config.num_heads
    patches = (image_size // 16) ** 2
    tokens = patches + 1
    embedding = patches * width * 3 * 16**2
    self_attention = (
        12 * patches * width**2  # qkv, proj and MLP
        + 2 * patches**2 * width  # scores and values
        + 2 * patches**2 * heads**2  # mixing heads, twice
        + 10 * patches * width  # two norms
    )
    class_attention = (
        2 * tokens * width**2  # key and value
        + 2 * tokens * width  # scores and values
        + 10 * width**2  # query, proj and MLP
        + 5 * tokens * width  # norm of all tokens
        + 5 * width  # norm of the class token
    )
    head = 5 * tokens * width + 1000 * width
    return (
        embedding + config.depth * self_attention + 2 * class_attention + head
    )


def parameters(variant: str, image_size: int) -> int:
    """Number of weights with a head of 1000 classes.

    Args:
        variant: key of `VARIANTS`.
        image_size: height and width in pixels.

    Example:
    >>> parameters("S24", 224)
    46916200
    """
    config = VARIANTS[variant]
    width, heads = config.embed_dim, config.num_heads
    patches = (image_size // 16) ** 2
    embedding = width * 3 * 16**2 + width + patches * width + width
    # qkv, proj and MLP with biases, two norms, two LayerScales.
    block = 12 * width**2 + 9 * width + 4 * width + 2 * width
    mixing = 2 * (heads**2 + heads)
    head = 2 * width + 1000 * width + 1000
    return embedding + config.depth * (block + mixing) + 2 * block + head
