"""The inference graph that every format exports.

Weights come from `export.folding`. Shapes in comments: B batch, N patches,
n patches of a part, H heads, C embed_dim, D = C / H.
"""

import math
from functools import partial
from typing import Any, get_args

import numpy as np
import tensorflow as tf

import keras_cait
from export.exportable import (
    check_exportable,
    image_size,
    is_sigmoid,
    patch_grid,
)
from export.folding import fold
from export.options import Gelu, Precision
from keras_cait.layers import LAYER_NORM_EPSILON

# Channels of the convolutions that mix the heads: a vector register or two.
COLUMNS = 16

Dense = tuple[tf.Variable, tf.Variable]  # kernel (in, out) and bias (out,)


class InferenceModel(tf.Module):
    """A trained CaiT as a TensorFlow function with as few ops as possible.

    Args:
        model: `CaiT` with a head, preprocessing and `pooling="token"`, for RGB
            images of a fixed size.
        precision: `"float32"`, or `"bfloat16"` for the matrix products;
            softmax, LayerNorm and the residual stream stay in float32.
        gelu: `"erf"`, as trained, or `"tanh"`, the only GELU that some
            accelerators support.

    Call arguments:
        images: tensor `(batch, height, width, 3)`, RGB in 0...255, of any
            dtype.
        heads_last: how heads are mixed. By default a matrix is multiplied with
            the scores, which is fastest in TensorFlow; otherwise the scores
            with a matrix, the only way that GPUs take in LiteRT.
        parts: int > 0. Parts of the patches that meet only at keys and values.
            TensorFlow computes them at the same time, each on one core, with
            fewer pauses than when the cores share every operation.

    Returns:
        dict of float32 tensors: `logits` and `probabilities`
        `(batch, classes)`; `embedding` `(batch, embed_dim)`; `attention`
        `(batch, class_attention_depth, heads, rows, columns)`, from the class
        token to each patch. In a graph, unused outputs cost nothing.

    Raises:
        ValueError: `model` cannot be exported, or `precision` or `gelu` is
            unknown.

    Example:
    >>> model = CaiT(48, depth=1, num_heads=4, input_shape=(64, 96, 3))
    >>> outputs = InferenceModel(model)(np.zeros((2, 64, 96, 3), "uint8"))
    >>> tuple(outputs["attention"].shape)
    (2, 2, 4, 4, 6)
    """

    def __init__(
        self,
        model: keras_cait.CaiT,
        precision: Precision = "float32",
        gelu: Gelu = "erf",
    ):
        super().__init__()
        check_exportable(model)
        for name, value, choices in (
            ("precision", precision, get_args(Precision)),
            ("gelu", gelu, get_args(Gelu)),
        ):
            if value not in choices:
                raise ValueError(
                    f"{name} must be one of {', '.join(choices)}. Got "
                    f"{value!r}."
                )
        self.gelu = gelu
        self.is_sigmoid = is_sigmoid(model)
        self.image_size = image_size(model)
        self.patch_size = model.patch_size
        self.grid = patch_grid(model)
        self.patches = math.prod(self.grid)
        self.num_heads = model.num_heads
        self.embed_dim = model.embed_dim
        self.classes = model.classes
        blocks = ("self_attention", "class_attention")
        self.weights = {
            name: tf.nest.map_structure(
                partial(
                    variable, dtype=precision if name in blocks else "float32"
                ),
                arrays,
            )
            for name, arrays in fold(model).items()
        }

    def __call__(
        self, images: tf.Tensor, heads_last: bool = False, parts: int = 1
    ) -> dict[str, tf.Tensor]:
        weights, width = self.weights, self.embed_dim
        sizes = [len(p) for p in np.array_split(range(self.patches), parts)]
        batch: Any = images.shape[0] or tf.shape(images)[0]
        x = tf.nn.conv2d(
            tf.cast(images, tf.float32),
            weights["patch_embedding"],
            strides=self.patch_size,
            padding="VALID",
        )
        # The reshape also corrects the shape of an empty batch, for which
        # oneDNN's convolution returns that of the images.
        x = tf.reshape(x, (-1, self.patches, width)) + weights["positions"]
        # LiteRT would keep a split into one.
        xs = tf.split(x, sizes, axis=1) if parts > 1 else [x]
        xs = [tf.reshape(x, (-1, width)) for x in xs]  # (B * n, C)
        for i, block in enumerate(weights["self_attention"]):
            with tf.name_scope(f"self_attention_block_{i}"):
                block = tf.nest.map_structure(tf.convert_to_tensor, block)
                branches = self.self_attention(
                    [normalize(x) for x in xs], block, sizes, heads_last
                )
                xs = [
                    x + branch for x, branch in zip(xs, branches, strict=True)
                ]
                xs = [
                    tf.add(x, self.mlp(normalize(x), block), "output")
                    for x in xs
                ]

        # Both class-attention blocks read the same patches.
        patches = tf.concat(
            [
                tf.reshape(normalize(x), (-1, size, width))
                for x, size in zip(xs, sizes, strict=True)
            ],
            axis=1,
        )
        token = tf.tile(weights["class_token"], (batch, 1))
        attention = []
        for i, block in enumerate(weights["class_attention"]):
            with tf.name_scope(f"class_attention_block_{i}"):
                branch, scores = self.class_attention(
                    normalize(token), patches, block
                )
                token = token + branch
                token = tf.add(
                    token, self.mlp(normalize(token), block), "output"
                )
            _, scores = tf.split(scores, (1, self.patches), axis=-1)
            attention.append(
                tf.reshape(scores, (-1, self.num_heads, *self.grid))
            )

        token = normalize(token)
        logits = dense(token, weights["head"], "head")
        gamma, beta = weights["norm"]
        return {
            "logits": logits,
            "probabilities": tf.sigmoid(logits)
            if self.is_sigmoid
            else tf.nn.softmax(logits),
            "embedding": token * gamma + beta,
            "attention": tf.reshape(
                tf.concat(attention, axis=1),
                (-1, len(attention), self.num_heads, *self.grid),
            ),
        }

    def self_attention(
        self,
        parts: list[tf.Tensor],
        weights: dict[str, Any],
        sizes: list[int],
        heads_last: bool,
    ) -> list[tf.Tensor]:
        """Talking-heads attention, of each part to all: (B * n, C) each."""
        heads, head_dim = self.num_heads, self.embed_dim // self.num_heads

        def project(x: tf.Tensor, patches: int) -> list[tf.Tensor]:
            qkv = matmul(x, weights["qkv"], "qkv")
            qkv = tf.reshape(qkv, (-1, patches, 3 * heads, head_dim))
            return tf.split(tf.transpose(qkv, (2, 0, 1, 3)), 3)

        def output(values: tf.Tensor) -> tf.Tensor:
            values = tf.transpose(values, (1, 2, 0, 3))
            values = tf.reshape(values, (-1, self.embed_dim))
            return dense(values, weights["proj"], "proj")

        queries, keys, values = zip(*map(project, parts, sizes), strict=True)
        key, value = tf.concat(keys, axis=2), tf.concat(values, axis=2)
        return [
            output(talk(query, key, value, weights, heads_last))
            for query in queries
        ]

    def class_attention(
        self, token: tf.Tensor, patches: tf.Tensor, weights: dict[str, Any]
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """(B, C), (B, N, C) -> (B, C) and scores (B, H, 1 + N)."""
        heads, head_dim = self.num_heads, self.embed_dim // self.num_heads
        dtype = weights["key"].dtype
        tokens = tf.concat([tf.expand_dims(token, 1), patches], axis=1)
        tokens = tf.cast(tokens, dtype)
        query = matmul(token, weights["query"], "query")
        query = tf.transpose(
            tf.reshape(query, (-1, heads, head_dim)), (1, 0, 2)
        )
        query = tf.matmul(query, weights["key"])  # (H, B, C)
        # The query of the first block is a constant: on the right, see above.
        scores = tf.matmul(tokens, tf.transpose(query, (1, 2, 0)))
        scores = softmax(tf.transpose(scores, (0, 2, 1)))  # (B, H, 1 + N)
        values = tf.transpose(tf.matmul(scores, tokens), (1, 0, 2))
        values = tf.matmul(values, weights["value"])  # (H, B, D)
        values = tf.reshape(
            tf.transpose(values, (1, 0, 2)), (-1, self.embed_dim)
        )
        return (
            dense(values, weights["proj"], "proj"),
            tf.cast(scores, tf.float32),
        )

    def mlp(self, x: tf.Tensor, weights: dict[str, Any]) -> tf.Tensor:
        """Two dense layers with a GELU: (..., C) -> (..., C)."""
        hidden = tf.nn.gelu(
            matmul(x, weights["fc1"], "fc1"), approximate=self.gelu == "tanh"
        )
        return dense(hidden, weights["fc2"], "fc2")


def variable(array: Any, dtype: str) -> tf.Variable:
    """A variable of an array, cast to a dtype."""
    return tf.Variable(tf.cast(array, dtype))


def normalize(x: tf.Tensor) -> tf.Tensor:
    """LayerNorm without its affine, of channels whose mean is 0."""
    variance = tf.reduce_mean(tf.square(x), axis=-1, keepdims=True)
    return x * tf.math.rsqrt(variance + LAYER_NORM_EPSILON)


def matmul(x: tf.Tensor, weights: Dense, name: str) -> tf.Tensor:
    """A dense layer in the precision of its weights."""
    kernel, bias = weights
    with tf.name_scope(name):
        return tf.nn.bias_add(tf.matmul(tf.cast(x, kernel.dtype), kernel), bias)


def dense(x: tf.Tensor, weights: Dense, name: str) -> tf.Tensor:
    """A dense layer with float32 output, for the residual stream."""
    return tf.cast(matmul(x, weights, name), tf.float32)


def talk(
    query: tf.Tensor,
    key: tf.Tensor,
    value: tf.Tensor,
    weights: dict[str, Any],
    heads_last: bool,
) -> tf.Tensor:
    """Values for some queries: (H, B, n, D), (H, B, N, D) -> (H, B, n, D)."""
    scores = tf.matmul(query, key, transpose_b=True)  # (H, B, n, N)
    mixing, bias = weights["proj_weights"]
    if heads_last:
        logits = mix_last(scores, weights["proj_logits"], "proj_logits")
        scores = mix_last(softmax(logits), mixing, "proj_weights", bias)
        return tf.matmul(scores, value)
    logits = mix_heads(scores, weights["proj_logits"], "proj_logits")
    scores = mix_heads(softmax(logits), mixing, "proj_weights")
    bias = tf.reshape(bias, (-1, 1, 1, 1))
    total = tf.reduce_sum(value, axis=2, keepdims=True)
    return tf.matmul(scores, value) + bias * total


def mix_heads(scores: tf.Tensor, kernel: tf.Variable, name: str) -> tf.Tensor:
    """Mixes the heads of (H, B, n, N) by an (H, H) matrix."""
    heads, _, queries, keys = scores.shape
    with tf.name_scope(name):
        # Rank 3, because LiteRT turns a product of rank 2 into a dense layer
        # with transposes around it.
        scores = tf.reshape(scores, (1, heads, -1))
        mixed = tf.matmul(tf.expand_dims(kernel, 0), scores)
        return tf.reshape(mixed, (heads, -1, queries, keys))


def mix_last(
    scores: tf.Tensor,
    kernel: tf.Variable,
    name: str,
    bias: tf.Variable | None = None,
) -> tf.Tensor:
    """Mixes the heads of (H, B, n, N) as a 1 x 1 convolution does channels.

    A few keys are convolved as one pixel of `COLUMNS` channels, since a
    convolution of 4 channels leaves most of a vector register empty.
    """
    heads, _, queries, keys = scores.shape
    together = math.gcd(keys, max(1, COLUMNS // heads))
    eye = tf.eye(together, dtype=kernel.dtype)
    blocks = tf.einsum("ij,hg->ihjg", eye, tf.transpose(kernel))
    channels = together * heads
    with tf.name_scope(name):
        scores = tf.reshape(
            tf.transpose(scores, (1, 2, 3, 0)),
            (-1, queries, keys // together, channels),
        )
        mixed = tf.nn.conv2d(
            scores, tf.reshape(blocks, (1, 1, channels, channels)), 1, "VALID"
        )
        if bias is not None:
            mixed = tf.nn.bias_add(mixed, tf.tile(bias, (together,)))
        mixed = tf.reshape(mixed, (-1, queries, keys, heads))
        return tf.transpose(mixed, (3, 0, 1, 2))


def softmax(scores: tf.Tensor) -> tf.Tensor:
    """Softmax over the last axis, in float32."""
    return tf.cast(tf.nn.softmax(tf.cast(scores, tf.float32)), scores.dtype)
