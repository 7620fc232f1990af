"""The one inference graph that every format exports.

What only training needs is multiplied into the weights once, in float64:

- pixel normalisation into the patch convolution, whose bias joins the positions
- LayerNorm's affine into the dense layer behind it
- LayerScale into `proj` and `fc2`, the query's scale into `qkv` and `query`
- the bias of `proj_logits` and of every class-attention `key` cancels in the
  softmax; that of `value`, whose weights sum to 1, joins the bias of `proj`
- the bias of `proj_weights` weighs the sum of the values instead of being
  added to all scores
- class attention has one query: `key` and `value` act on it, not on every patch

Shape legend of the comments: B batch, N patches, H heads, C embed_dim,
D = C / H.
"""

from functools import partial

import numpy as np
import tensorflow as tf

import keras_cait
from keras_cait.layers import LAYER_NORM_EPSILON, resample_positions

PRECISIONS = ("float32", "bfloat16")
GELUS = ("erf", "tanh")


class InferenceModel(tf.Module):
    """A trained CaiT as a function of images, with as few operations as it can.

    Args:
        model: `CaiT` with a head, `pooling="token"` and its own preprocessing,
            for RGB images of one size.
        precision: `"float32"`, or `"bfloat16"` for the matrix products;
            softmax, LayerNorm and the residual stream stay in float32.
        gelu: `"erf"`, as the model was trained, or `"tanh"`, the approximation
            that some accelerators have alone.

    Call arguments:
        images: tensor `(batch, height, width, 3)`, RGB in 0...255, of any
            dtype.

    Returns:
        dict of float32 tensors: `logits` and `probabilities`
        `(batch, classes)`; `embedding` `(batch, embed_dim)`; `attention`
        `(batch, class_attention_depth, heads, rows, columns)`, of the class
        token to each patch. What is not used of it costs nothing in a graph.

    Raises:
        ValueError: `model` is no such CaiT, or there is no such precision or
            GELU.

    Example:
    >>> model = CaiT(48, depth=1, num_heads=4, input_shape=(64, 96, 3))
    >>> answer = InferenceModel(model)(np.zeros((2, 64, 96, 3), "uint8"))
    >>> tuple(answer["attention"].shape)
    (2, 2, 4, 4, 6)
    """

    def __init__(self, model, precision="float32", gelu="erf"):
        super().__init__()
        check_exportable(model)
        for name, value, choices in (
            ("precision", precision, PRECISIONS),
            ("gelu", gelu, GELUS),
        ):
            if value not in choices:
                raise ValueError(
                    f"{name} must be one of {', '.join(choices)}. "
                    f"Received: {value!r}."
                )
        self.gelu = gelu
        self.image_shape = model.image_shape
        self.patch_size = model.patch_size
        self.num_heads = model.num_heads
        self.embed_dim = model.embed_dim
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

    def __call__(self, images):
        weights, width = self.weights, self.embed_dim
        rows, columns = (
            side // self.patch_size for side in self.image_shape[:2]
        )
        batch = images.shape[0] or tf.shape(images)[0]
        x = tf.nn.conv2d(
            tf.cast(images, tf.float32),
            weights["patch_embedding"],
            strides=self.patch_size,
            padding="VALID",
        )
        # The reshape also mends the shape of an empty batch, which oneDNN's
        # convolution hands through as that of the images.
        x = tf.reshape(x, (-1, rows * columns, width)) + weights["positions"]
        x = tf.reshape(x, (-1, width))  # (B * N, C)
        for i, block in enumerate(weights["self_attention"]):
            with tf.name_scope(f"self_attention_block_{i}"):
                x = x + self.self_attention(normalise(x), block, rows * columns)
                x = tf.add(x, self.mlp(normalise(x), block), "output")

        # Both class-attention blocks read the same patches.
        patches = normalise(tf.reshape(x, (-1, rows * columns, width)))
        token = tf.tile(weights["class_token"], (batch, 1))
        attention = []
        for i, block in enumerate(weights["class_attention"]):
            with tf.name_scope(f"class_attention_block_{i}"):
                branch, scores = self.class_attention(
                    normalise(token), patches, block
                )
                token = token + branch
                token = tf.add(
                    token, self.mlp(normalise(token), block), "output"
                )
            _, scores = tf.split(scores, (1, rows * columns), axis=-1)
            attention.append(
                tf.reshape(scores, (-1, self.num_heads, rows, columns))
            )

        token = normalise(token)
        logits = dense(token, weights["head"], "head")
        gamma, beta = weights["norm"]
        return {
            "logits": logits,
            "probabilities": tf.nn.softmax(logits),
            "embedding": token * gamma + beta,
            "attention": tf.reshape(
                tf.concat(attention, axis=1),
                (-1, len(attention), self.num_heads, rows, columns),
            ),
        }

    def self_attention(self, x, weights, patches):
        """Talking-heads attention: (B * N, C) -> (B * N, C)."""
        heads, head_dim = self.num_heads, self.embed_dim // self.num_heads
        qkv = tf.reshape(
            matmul(x, weights["qkv"], "qkv"), (-1, patches, 3 * heads, head_dim)
        )
        query, key, value = tf.split(tf.transpose(qkv, (2, 0, 1, 3)), 3)
        scores = tf.matmul(query, key, transpose_b=True)  # (H, B, N, N)
        scores = softmax(
            mix_heads(scores, weights["proj_logits"], "proj_logits")
        )
        mixing, bias = weights["proj_weights"]
        values = tf.matmul(
            mix_heads(scores, mixing, "proj_weights"), value
        )  # (H, B, N, D)
        values += bias * tf.reduce_sum(value, axis=2, keepdims=True)
        values = tf.transpose(values, (1, 2, 0, 3))
        return dense(
            tf.reshape(values, (-1, self.embed_dim)), weights["proj"], "proj"
        )

    def class_attention(self, token, patches, weights):
        """(B, C), (B, N, C) -> (B, C) and the scores (B, H, 1 + N)."""
        heads, head_dim = self.num_heads, self.embed_dim // self.num_heads
        dtype = weights["key"].dtype
        tokens = tf.concat([tf.expand_dims(token, 1), patches], axis=1)
        tokens = tf.cast(tokens, dtype)
        query = matmul(token, weights["query"], "query")
        query = tf.transpose(
            tf.reshape(query, (-1, heads, head_dim)), (1, 0, 2)
        )
        query = tf.matmul(query, weights["key"])  # (H, B, C)
        scores = softmax(
            tf.matmul(tf.transpose(query, (1, 0, 2)), tokens, transpose_b=True)
        )
        values = tf.transpose(tf.matmul(scores, tokens), (1, 0, 2))
        values = tf.matmul(values, weights["value"])  # (H, B, D)
        values = tf.reshape(
            tf.transpose(values, (1, 0, 2)), (-1, self.embed_dim)
        )
        return (
            dense(values, weights["proj"], "proj"),
            tf.cast(scores, tf.float32),
        )

    def mlp(self, x, weights):
        hidden = tf.nn.gelu(
            matmul(x, weights["fc1"], "fc1"), approximate=self.gelu == "tanh"
        )
        return dense(hidden, weights["fc2"], "fc2")


def variable(array, dtype):
    return tf.Variable(tf.cast(array, dtype))


def check_exportable(model):
    if not isinstance(model, keras_cait.CaiT):
        raise ValueError(
            f"Only a CaiT is exported. Received: a {type(model).__name__}."
        )
    if model.get_config()["quantization_mode"]:
        raise ValueError(
            "Exports start from float weights. Received a model after "
            "quantize(). Export the model it was made from."
        )
    if not (
        model.include_top
        and model.include_preprocessing
        and model.pooling == "token"
    ):
        raise ValueError(
            "Exports are classifiers of pixels in 0...255 by the class token. "
            f"Received a model with include_top={model.include_top}, "
            f"include_preprocessing={model.include_preprocessing} and "
            f'pooling={model.pooling!r}. Build it with True, True and "token".'
        )
    height, width, channels = model.image_shape
    if None in (height, width) or channels != 3:
        raise ValueError(
            "Exports take RGB pictures of one size. Received a model with "
            f"input_shape={model.image_shape}. Build it with the size that "
            "it is to run at, such as input_shape=(224, 224, 3), and load "
            "the weights into it."
        )


def check_labels(model, labels):
    """Raises ValueError where an `InferenceModel` has other classes."""
    _, bias = model.weights["head"]
    (classes,) = bias.shape
    if len(labels) != classes:
        raise ValueError(
            f"The model has {classes} classes. Received: {len(labels)} "
            "labels. Give a text file with one label a line, in the order "
            "of the classes: --labels FILE."
        )


def fold(model):
    """The weights of the inference graph, as nested dicts of float64 arrays.

    Dense layers are pairs of kernel `(in, out)` and bias `(out,)`.
    """
    variables = {v.path: v for v in model.weights}
    heads, width = model.num_heads, model.embed_dim
    head_dim = width // heads
    query_scale = head_dim**-0.5

    def read(path):
        return np.asarray(variables[path], "float64")

    def folded(layer, norm=None, scale=1.0):
        """Kernel and bias of a dense layer behind a LayerNorm, scaled."""
        kernel, bias = read(f"{layer}/kernel"), read(f"{layer}/bias")
        if norm is not None:
            bias = bias + read(f"{norm}/beta") @ kernel
            kernel = read(f"{norm}/gamma")[:, None] * kernel
        return kernel * scale, bias * scale

    def folded_mlp(block):
        return {
            "fc1": folded(f"{block}/mlp/fc1", f"{block}/norm2"),
            "fc2": folded(
                f"{block}/mlp/fc2", scale=read(f"{block}/layer_scale_2/gamma")
            ),
        }

    def self_attention(block):
        attention = f"{block}/attention"
        mixing = read(f"{attention}/proj_weights/bias")
        return {
            "qkv": folded(
                f"{attention}/qkv",
                f"{block}/norm1",
                np.repeat([query_scale, 1.0, 1.0], width),
            ),
            "proj_logits": read(f"{attention}/proj_logits/kernel").T,
            "proj_weights": (
                read(f"{attention}/proj_weights/kernel").T,
                mixing[:, None, None, None],
            ),
            "proj": folded(
                f"{attention}/proj", scale=read(f"{block}/layer_scale_1/gamma")
            ),
            **folded_mlp(block),
        }

    def class_attention(block):
        attention, norm = f"{block}/attention", f"{block}/norm1"
        key, _ = folded(f"{attention}/key", norm)
        value, value_bias = folded(f"{attention}/value", norm)
        gamma = read(f"{block}/layer_scale_1/gamma")
        kernel, bias = folded(f"{attention}/proj", scale=gamma)
        by_head = (width, heads, head_dim)
        return {
            "query": folded(f"{attention}/query", norm, query_scale),
            "key": key.reshape(by_head).transpose(1, 2, 0),
            "value": value.reshape(by_head).transpose(1, 0, 2),
            "proj": (kernel, bias + value_bias @ kernel),
            **folded_mlp(block),
        }

    normalization = model.get_layer("normalization")
    scale = np.asarray(normalization.scale, "float64")[:, None]
    offset = np.asarray(normalization.offset, "float64")[:, None]
    kernel = read("patch_embedding/proj/kernel")
    bias = read("patch_embedding/proj/bias")
    return {
        "patch_embedding": kernel * scale,
        "positions": positions(model) + bias + (kernel * offset).sum((0, 1, 2)),
        "self_attention": [
            self_attention(f"self_attention_block_{i}")
            for i in range(model.depth)
        ],
        "class_token": read("class_token/class_token")[0],
        "class_attention": [
            class_attention(f"class_attention_block_{i}")
            for i in range(model.class_attention_depth)
        ],
        "norm": (read("norm/gamma"), read("norm/beta")),
        "head": folded("head", "norm"),
    }


def positions(model):
    """The learned positions on the grid of the model's images: (N, C)."""
    height, width, _ = model.image_shape
    grid = (height // model.patch_size, width // model.patch_size)
    layer = model.get_layer("position_embedding")
    table = resample_positions(layer.position_embedding, layer.grid_size, grid)
    return np.asarray(table, "float64").reshape(-1, model.embed_dim)


def normalise(x):
    """LayerNorm without its affine."""
    mean = tf.reduce_mean(x, axis=-1, keepdims=True)
    variance = tf.reduce_mean(
        tf.math.squared_difference(x, mean), axis=-1, keepdims=True
    )
    return (x - mean) * tf.math.rsqrt(variance + LAYER_NORM_EPSILON)


def matmul(x, weights, name):
    """A dense layer in the precision of its weights."""
    kernel, bias = weights
    with tf.name_scope(name):
        return tf.nn.bias_add(tf.matmul(tf.cast(x, kernel.dtype), kernel), bias)


def dense(x, weights, name):
    """A dense layer whose answer joins the residual stream."""
    return tf.cast(matmul(x, weights, name), tf.float32)


def mix_heads(scores, kernel, name):
    """Mixes the heads of (H, B, N, N) by a (H, H) matrix."""
    heads, _, queries, keys = scores.shape
    with tf.name_scope(name):
        # Of rank 3: LiteRT makes a dense layer of a product of rank 2, with
        # transposes around it.
        scores = tf.reshape(scores, (1, heads, -1))
        mixed = tf.matmul(tf.expand_dims(kernel, 0), scores)
        return tf.reshape(mixed, (heads, -1, queries, keys))


def softmax(scores):
    """Softmax over the last axis, in float32."""
    return tf.cast(tf.nn.softmax(tf.cast(scores, tf.float32)), scores.dtype)
