"""The weights of the inference graph, folded from those of a trained model.

Training-only operations are folded into neighboring weights, once and in
float64:

- pixel normalization into the patch convolution, whose bias joins the positions
- the affine of each LayerNorm into the dense layer after it
- the mean that LayerNorm subtracts into all that is added to the residual
  stream, whose channels then have mean 0
- LayerScale into `proj` and `fc2`, the query scale into `qkv` and `query`
- the biases of `proj_logits` and of class-attention `key` cancel in the softmax
- the bias of class-attention `value` joins the bias of `proj`, because the
  attention weights sum to 1
- the bias of `proj_weights` scales the sum of the values, which is cheaper than
  adding it to every score
- class attention has one query, so `key` and `value` are applied to it rather
  than to every patch
"""

from typing import Any

import numpy as np

import keras_cait
from export.exportable import patch_grid
from keras_cait.layers import resample_positions


def fold(model: keras_cait.CaiT) -> dict[str, Any]:
    """Folds the weights of a model.

    Args:
        model: `CaiT` that `export.exportable.check_exportable` accepts.

    Returns:
        Nested dicts of float64 arrays, as `export.inference_graph` reads them.
        A dense layer is a pair of kernel `(in, out)` and bias `(out,)`.
    """
    variables = {v.path: v for v in model.weights}
    heads, width = model.num_heads, model.embed_dim
    head_dim = width // heads
    query_scale = head_dim**-0.5

    def read(path: str) -> np.ndarray:
        return np.asarray(variables[path], "float64")

    def folded(
        layer: str, norm: str | None = None, scale: float | np.ndarray = 1.0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Kernel and bias of a dense layer after a LayerNorm, scaled."""
        kernel, bias = read(f"{layer}/kernel"), read(f"{layer}/bias")
        if norm is not None:
            bias = bias + read(f"{norm}/beta") @ kernel
            kernel = read(f"{norm}/gamma")[:, None] * kernel
        return kernel * scale, bias * scale

    def centered(layer: str, scale: str) -> tuple[np.ndarray, np.ndarray]:
        """Kernel and bias of a dense layer that writes to the stream."""
        kernel, bias = folded(layer, scale=read(f"{scale}/gamma"))
        return center(kernel), center(bias)

    def folded_mlp(block: str) -> dict[str, Any]:
        return {
            "fc1": folded(f"{block}/mlp/fc1", f"{block}/norm2"),
            "fc2": centered(f"{block}/mlp/fc2", f"{block}/layer_scale_2"),
        }

    def self_attention(block: str) -> dict[str, Any]:
        attention = f"{block}/attention"
        return {
            "qkv": folded(
                f"{attention}/qkv",
                f"{block}/norm1",
                np.repeat([query_scale, 1.0, 1.0], width),
            ),
            "proj_logits": read(f"{attention}/proj_logits/kernel").T,
            "proj_weights": (
                read(f"{attention}/proj_weights/kernel").T,
                read(f"{attention}/proj_weights/bias"),
            ),
            "proj": centered(f"{attention}/proj", f"{block}/layer_scale_1"),
            **folded_mlp(block),
        }

    def class_attention(block: str) -> dict[str, Any]:
        attention, norm = f"{block}/attention", f"{block}/norm1"
        key, _ = folded(f"{attention}/key", norm)
        value, value_bias = folded(f"{attention}/value", norm)
        kernel, bias = centered(f"{attention}/proj", f"{block}/layer_scale_1")
        by_head = (width, heads, head_dim)
        return {
            "query": folded(f"{attention}/query", norm, query_scale),
            "key": key.reshape(by_head).transpose(1, 2, 0),
            "value": value.reshape(by_head).transpose(1, 0, 2),
            "proj": (kernel, bias + value_bias @ kernel),
            **folded_mlp(block),
        }

    normalization = model.get_layer("normalization")
    scale = np.reshape(normalization.scale, (-1, 1)).astype("float64")
    offset = np.reshape(normalization.offset, (-1, 1)).astype("float64")
    kernel = read("patch_embedding/proj/kernel")
    bias = read("patch_embedding/proj/bias")
    return {
        "patch_embedding": center(kernel * scale),
        "positions": center(
            positions(model) + bias + (kernel * offset).sum((0, 1, 2))
        ),
        "self_attention": [
            self_attention(block.name) for block in model.self_attention_blocks
        ],
        "class_token": center(read("class_token/class_token")[0]),
        "class_attention": [
            class_attention(block.path)
            for block in model.class_attention_blocks
        ],
        "norm": (read("norm/gamma"), read("norm/beta")),
        "head": folded("head", "norm"),
    }


def positions(model: keras_cait.CaiT) -> np.ndarray:
    """Position embeddings resampled to the grid of the images: (N, C)."""
    layer = model.get_layer("position_embedding")
    table = resample_positions(
        layer.position_embedding, layer.grid_size, patch_grid(model)
    )
    return np.asarray(table, "float64").reshape(-1, model.embed_dim)


def center(x: np.ndarray) -> np.ndarray:
    """Subtracts the mean of the channels, which are the last axis."""
    return x - x.mean(axis=-1, keepdims=True)
