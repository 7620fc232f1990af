"""The layers of CaiT, written with `keras.ops` only.

Shapes in comments: B batch, N tokens (patches), H heads, C embed_dim,
D = C / H. All tensors have rank 4 or less, and there is no einsum and no
gather: the same graph is fast in TensorFlow, XLA, JAX and LiteRT.

Precision: under a mixed policy, matrix products run in the compute dtype, while
softmax, LayerNorm statistics and LayerScale stay in float32.
"""

import math
from numbers import Real
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_cait.initializers import BlockInitializer, kernel_initializer

LAYER_NORM_EPSILON = 1e-6

Shape = tuple[int | None, ...]
# An array, a tensor of the backend, or a Keras tensor.
Tensor = Any


class Container(keras.layers.Layer):
    """A layer of layers, all of which `trainable` freezes or thaws.

    Keras on TensorFlow ignores a value that an attribute already has, even if
    a part has another; and a layer that is frozen before it is built, as from a
    file, does not freeze its parts.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "trainable":
            super().__setattr__(name, not value)
        super().__setattr__(name, value)

    def _post_build(self) -> None:
        super()._post_build()
        if not self.trainable:
            self.trainable = False


@keras.saving.register_keras_serializable(package="keras_cait")
class PatchEmbedding(Container):
    """Splits images into square patches and projects each to a token.

    Args:
        embed_dim: int > 0. Width of a token.
        patch_size: int > 0. Side of a patch in pixels.

    Call arguments:
        inputs: float tensor `(batch, height, width, channels)`. Height and
            width are multiples of `patch_size`. If they are unknown when the
            graph is built, pixels beyond the last whole patch are ignored.

    Returns:
        Tensor `(batch, height / patch_size, width / patch_size, embed_dim)`.

    Raises:
        ValueError: the inputs do not have rank 4, or do not divide into
            patches.

    Example:
    >>> tuple(PatchEmbedding(192)(np.ones((2, 224, 224, 3))).shape)
    (2, 14, 14, 192)

    Reference: Touvron et al., 2021, section 2; tensors `patch_embed.proj.*`.
    """

    def __init__(self, embed_dim: int, patch_size: int = 16, **kwargs: Any):
        super().__init__(**kwargs)
        self.embed_dim = positive_int("embed_dim", embed_dim)
        self.patch_size = positive_int("patch_size", patch_size)
        self.proj = keras.layers.Conv2D(
            embed_dim,
            patch_size,
            strides=patch_size,
            data_format="channels_last",
            # The official code leaves this one kernel to PyTorch's default: a
            # standard deviation of 0.02 for RGB patches of 16 pixels.
            kernel_initializer=keras.initializers.VarianceScaling(
                1 / 3, "fan_in", "uniform"
            ),
            dtype=self.dtype_policy,
            name="proj",
        )

    def build(self, input_shape: Shape) -> None:
        self._check(input_shape)
        self.proj.build(input_shape)

    def call(self, inputs: Tensor) -> Tensor:
        self._check(inputs.shape)
        return self.proj(inputs)

    def _check(self, shape: Shape) -> None:
        check_rank(self, shape, 4, "(batch, height, width, channels)")
        if any(s is not None and s % self.patch_size for s in shape[1:3]):
            raise ValueError(
                "Height and width of the images must be multiples of "
                f"patch_size={self.patch_size}. Received: {tuple(shape[1:3])}. "
                "Resize the images, or choose another patch_size."
            )

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return self.proj.compute_output_shape(input_shape)

    def get_config(self) -> dict[str, Any]:
        config = {"embed_dim": self.embed_dim, "patch_size": self.patch_size}
        return {**super().get_config(), **config}


@keras.saving.register_keras_serializable(package="keras_cait")
class PositionEmbedding(keras.layers.Layer):
    """Adds a learned position to each patch and flattens the grid.

    If the grid differs from its own, the layer resamples the positions in the
    graph (antialiased bicubic): one layer fits every image size.

    Args:
        grid_size: grid `(rows, columns)` of the learned positions. `None` is
            the grid of the first input.

    Call arguments:
        inputs: float tensor `(batch, rows, columns, embed_dim)`.

    Returns:
        Tensor `(batch, rows * columns, embed_dim)` in row-major order.

    Raises:
        ValueError: the inputs do not have rank 4, or `grid_size` is missing
            and their size is unknown.

    Example:
    >>> tuple(PositionEmbedding()(np.ones((2, 14, 14, 192))).shape)
    (2, 196, 192)

    Reference: Touvron et al., 2021, section 2; tensor `pos_embed`.
    """

    def __init__(self, grid_size: tuple[int, int] | None = None, **kwargs: Any):
        # Positions are added to the float32 residual stream.
        super().__init__(autocast=False, **kwargs)
        self.grid_size: Any = None if grid_size is None else _grid(grid_size)

    def build(self, input_shape: Shape) -> None:
        check_rank(self, input_shape, 4, "(batch, rows, columns, embed_dim)")
        _, rows, columns, embed_dim = input_shape
        self.grid_size = self.grid_size or (rows, columns)
        if None in self.grid_size:
            raise ValueError(
                "PositionEmbedding needs the grid of its learned positions if "
                "the image size is unknown. Received: grid_size=None for "
                f"inputs of shape {tuple(input_shape)}. Pass for example "
                "grid_size=(14, 14)."
            )
        self.position_embedding = self.add_weight(
            name="position_embedding",
            shape=(1, self.grid_size[0] * self.grid_size[1], embed_dim),
            initializer=kernel_initializer(),
            autocast=False,
        )

    def call(self, inputs: Tensor) -> Tensor:
        _, rows, columns, embed_dim = ops.shape(inputs)
        positions = resample_positions(
            self.position_embedding, self.grid_size, (rows, columns)
        )
        patches = ops.reshape(inputs, (-1, rows * columns, embed_dim))
        return ops.cast(patches, positions.dtype) + positions

    def compute_output_spec(self, inputs: Tensor) -> Tensor:
        return keras.KerasTensor(
            self.compute_output_shape(inputs.shape), dtype=self.variable_dtype
        )

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        batch, rows, columns, embed_dim = input_shape
        if rows is None or columns is None:
            return (batch, None, embed_dim)
        return (batch, rows * columns, embed_dim)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "grid_size": self.grid_size}


def resample_positions(
    positions: Tensor, grid: tuple[int, int], new_grid: tuple[Any, Any]
) -> Tensor:
    """Resamples positions to another grid.

    Antialiased bicubic with a = -0.5 and weights renormalized at the edges, as
    in timm's `resample_abs_pos_embed`. It multiplies with one small matrix for
    the rows and one for the columns, which also works if the new grid is only
    known when the graph runs.

    Args:
        positions: tensor `(1, rows * columns, embed_dim)`.
        grid: `(rows, columns)` of `positions`.
        new_grid: two ints or scalar int tensors.

    Returns:
        Tensor `(1, new_rows * new_columns, embed_dim)`.

    Example:
    >>> positions = np.ones((1, 196, 8), "float32")
    >>> tuple(resample_positions(positions, (14, 14), (24, 20)).shape)
    (1, 480, 8)
    """
    known = all(isinstance(size, int) for size in new_grid)
    if known and tuple(grid) == tuple(new_grid):
        return positions
    embed_dim = positions.shape[-1]
    rows, columns = (
        ops.cast(bicubic_weights(old, new), positions.dtype)
        for old, new in zip(grid, new_grid, strict=True)
    )
    resampled = ops.matmul(
        rows, ops.reshape(positions, (grid[0], grid[1] * embed_dim))
    )
    resampled = ops.matmul(
        columns, ops.reshape(resampled, (-1, grid[1], embed_dim))
    )
    return ops.reshape(resampled, (1, new_grid[0] * new_grid[1], embed_dim))


def bicubic_weights(size: Any, new_size: Any) -> Tensor:
    """Returns the `(new_size, size)` matrix of an antialiased bicubic resize.

    Args:
        size: int or scalar int tensor.
        new_size: int or scalar int tensor.
    """
    step = ops.cast(size, "float32") / ops.cast(new_size, "float32")
    centers = (ops.arange(new_size, dtype="float32") + 0.5) * step - 0.5
    points = ops.arange(size, dtype="float32")
    # Shrinking widens the kernel to `step` source points: the antialiasing.
    x = ops.abs(centers[:, None] - points[None, :]) / ops.maximum(step, 1.0)
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    weights = ops.where(x < 1.0, near, ops.where(x < 2.0, far, 0.0))
    return weights / ops.sum(weights, axis=1, keepdims=True)


@keras.saving.register_keras_serializable(package="keras_cait")
class ClassToken(keras.layers.Layer):
    """The learned class token, repeated for each image.

    Call arguments:
        inputs: tensor `(batch, patches, embed_dim)`. Only its shape is used.

    Returns:
        Tensor `(batch, 1, embed_dim)`.

    Raises:
        ValueError: the inputs do not have rank 3.

    Example:
    >>> tuple(ClassToken()(np.ones((2, 196, 192))).shape)
    (2, 1, 192)

    Reference: Touvron et al., 2021, section 3; tensor `cls_token`.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(autocast=False, **kwargs)

    def build(self, input_shape: Shape) -> None:
        check_rank(self, input_shape, 3, "(batch, patches, embed_dim)")
        self.class_token = self.add_weight(
            name="class_token",
            shape=(1, 1, input_shape[-1]),
            initializer=kernel_initializer(),
            autocast=False,
        )

    def call(self, inputs: Tensor) -> Tensor:
        return ops.repeat(self.class_token, ops.shape(inputs)[0], axis=0)

    def compute_output_spec(self, inputs: Tensor) -> Tensor:
        return keras.KerasTensor(
            self.compute_output_shape(inputs.shape), dtype=self.variable_dtype
        )

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return (input_shape[0], 1, input_shape[-1])

    def get_config(self) -> dict[str, Any]:  # Keras wants it beside __init__
        return super().get_config()


@keras.saving.register_keras_serializable(package="keras_cait")
class LayerScale(keras.layers.Layer):
    """Multiplies each channel of a residual branch by a learned `gamma`.

    `gamma` starts close to 0: a deep network starts near the identity, and
    blocks gain influence as they learn. The product is computed in the dtype of
    the weights, as 1e-6 would vanish in float16.

    Args:
        init_values: float. Initial value of `gamma`.

    Call arguments:
        inputs: float tensor `(..., embed_dim)`.

    Returns:
        Tensor of the same shape, in the dtype of the weights.

    Raises:
        ValueError: `init_values` is not a number.

    Example:
    >>> tuple(LayerScale(0.1)(np.ones((1, 2, 3))).shape)
    (1, 2, 3)

    Reference: Touvron et al., 2021, section 2; tensors `gamma_1`, `gamma_2`.
    """

    def __init__(self, init_values: float = 1e-5, **kwargs: Any):
        super().__init__(autocast=False, **kwargs)
        if not is_number(init_values):
            raise ValueError(
                "init_values must be a number. Received: "
                f"init_values={init_values!r}. For example 1e-5."
            )
        self.init_values = init_values

    def build(self, input_shape: Shape) -> None:
        self.gamma = self.add_weight(
            name="gamma",
            shape=(input_shape[-1],),
            initializer=keras.initializers.Constant(self.init_values),
            autocast=False,
        )

    def call(self, inputs: Tensor) -> Tensor:
        return ops.cast(inputs, self.gamma.dtype) * self.gamma

    def compute_output_spec(self, inputs: Tensor) -> Tensor:
        return keras.KerasTensor(inputs.shape, dtype=self.variable_dtype)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "init_values": self.init_values}


@keras.saving.register_keras_serializable(package="keras_cait")
class MLP(Container):
    """Two dense layers with an exact (erf) GELU between them.

    Args:
        mlp_ratio: float > 0. Width of the hidden layer over `embed_dim`.

    Call arguments:
        inputs: float tensor `(batch, tokens, embed_dim)`.

    Returns:
        Tensor of the same shape.

    Raises:
        ValueError: `mlp_ratio` is not positive.

    Example:
    >>> tuple(MLP()(np.ones((2, 196, 192))).shape)
    (2, 196, 192)

    Reference: Touvron et al., 2021, section 2; tensors `mlp.fc1.*`,
    `mlp.fc2.*`.
    """

    def __init__(self, mlp_ratio: float = 4.0, **kwargs: Any):
        super().__init__(**kwargs)
        if not (is_number(mlp_ratio) and mlp_ratio > 0):
            raise ValueError(
                "mlp_ratio must be positive. Received: "
                f"mlp_ratio={mlp_ratio!r}. The paper uses 4."
            )
        self.mlp_ratio = mlp_ratio

    def build(self, input_shape: Shape) -> None:
        embed_dim = width(input_shape)
        hidden_dim = int(embed_dim * self.mlp_ratio)
        self.fc1 = dense(self, "fc1", hidden_dim, input_shape)
        hidden_shape = (*input_shape[:-1], hidden_dim)
        self.fc2 = dense(self, "fc2", embed_dim, hidden_shape)

    def call(self, inputs: Tensor) -> Tensor:
        return self.contract(self.fc1(inputs))

    def contract(self, hidden: Tensor) -> Tensor:
        """GELU and the second layer."""
        # Keras' own exact GELU uses erfc, which costs XLA 7 % of the model.
        hidden = 0.5 * hidden * (1.0 + ops.erf(hidden * 0.5**0.5))
        return self.fc2(hidden)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "mlp_ratio": self.mlp_ratio}


@keras.saving.register_keras_serializable(package="keras_cait")
class HeadMixing(keras.layers.Layer):
    """A dense layer across the heads of attention scores.

    With the heads first, it is one product of a `(heads, heads)` matrix with
    all scores of the batch. Nothing is transposed.

    Call arguments:
        inputs: float tensor `(heads, batch, queries, keys)`.

    Returns:
        Tensor of the same shape.

    Example:
    >>> tuple(HeadMixing()(np.ones((4, 2, 196, 196))).shape)
    (4, 2, 196, 196)

    Reference: Shazeer et al., 2020 (talking heads); tensors `attn.proj_l.*`,
    `attn.proj_w.*`.
    """

    def build(self, input_shape: Shape) -> None:
        heads = input_shape[0]
        self.kernel = self.add_weight(
            name="kernel",
            shape=(heads, heads),
            initializer=kernel_initializer(),
        )
        self.bias = self.add_weight(
            name="bias", shape=(heads,), initializer="zeros"
        )

    def call(self, inputs: Tensor) -> Tensor:
        heads, _, queries, keys = ops.shape(inputs)
        mixed = ops.matmul(
            ops.transpose(self.kernel), ops.reshape(inputs, (heads, -1))
        )
        mixed = mixed + ops.reshape(self.bias, (heads, 1))
        return ops.reshape(mixed, (heads, -1, queries, keys))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape


class Attention(Container):
    """What `TalkingHeadsAttention` and `ClassAttention` share: the heads."""

    def __init__(self, num_heads: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.num_heads = positive_int("num_heads", num_heads)

    def _gather(
        self, scores: Tensor, value: Tensor, return_attention_scores: bool
    ) -> Any:
        """Projects the values that scores (H, B, M, N) weight."""
        outputs = self.proj(weighted_values(scores, value))
        if return_attention_scores:
            return outputs, ops.transpose(scores, (1, 0, 2, 3))
        return outputs

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "num_heads": self.num_heads}


@keras.saving.register_keras_serializable(package="keras_cait")
class TalkingHeadsAttention(Attention):
    """Self-attention whose heads are mixed before and after the softmax.

    Computes `P_w softmax(P_l (Q K^T / sqrt(D))) V`, where the learned `P_l`
    (`proj_logits`) and `P_w` (`proj_weights`) act across the heads. Unlike
    `keras.layers.MultiHeadAttention`, it has these two and a fused `qkv`.

    Args:
        num_heads: int > 0 that divides `embed_dim`.

    Call arguments:
        inputs: float tensor `(batch, tokens, embed_dim)`.
        return_attention_scores: whether to return the scores after `P_w` as
            well.
        scores_scale: tensor that broadcasts to the scores, to multiply those
            after `P_w` with, or `None`.

    Returns:
        Tensor `(batch, tokens, embed_dim)`. With scores, a pair of it and
        `(batch, num_heads, tokens, tokens)`.

    Raises:
        ValueError: the inputs do not have rank 3, or `embed_dim` is not
            divisible by `num_heads`.

    Example:
    >>> tuple(TalkingHeadsAttention(4)(np.ones((2, 196, 192))).shape)
    (2, 196, 192)

    Reference: Touvron et al., 2021, section 4; Shazeer et al., 2020; tensors
    `blocks.*.attn.*`.
    """

    def build(self, input_shape: Shape) -> None:
        check_rank(self, input_shape, 3, "(batch, tokens, embed_dim)")
        batch, tokens, _ = input_shape
        embed_dim = width(input_shape)
        check_heads(embed_dim, self.num_heads)
        self.qkv = dense(self, "qkv", 3 * embed_dim, input_shape)
        self._build_mix((self.num_heads, batch, tokens, tokens))
        self.proj = dense(self, "proj", embed_dim, input_shape)

    def _build_mix(self, scores_shape: Shape) -> None:
        self.proj_logits, self.proj_weights = (
            HeadMixing(dtype=self.dtype_policy, name=name)
            for name in ("proj_logits", "proj_weights")
        )
        self.proj_logits.build(scores_shape)
        self.proj_weights.build(scores_shape)

    def call(
        self,
        inputs: Tensor,
        return_attention_scores: bool = False,
        scores_scale: Tensor | None = None,
    ) -> Tensor:
        query, key, value = ops.split(self.qkv(inputs), 3, axis=-1)
        scores = query_key_scores(query, key, self.num_heads)  # (H, B, N, N)
        scores = scaled(self._mix(scores), scores_scale)
        return self._gather(scores, value, return_attention_scores)

    def _mix(self, scores: Tensor) -> Tensor:
        """`P_w softmax(P_l scores)`."""
        if keras.backend.backend() == "jax":
            from keras_cait import fused_mixing

            if fused_mixing.applies(scores):  # on a GPU
                return fused_mixing.mix(
                    scores,
                    ops.convert_to_tensor(self.proj_logits.kernel),
                    ops.convert_to_tensor(self.proj_weights.kernel),
                    ops.convert_to_tensor(self.proj_weights.bias),
                )
        return self.proj_weights(softmax(self.proj_logits(scores)))

    def compute_output_spec(
        self,
        inputs: Tensor,
        return_attention_scores: bool = False,
        scores_scale: Tensor | None = None,
    ) -> Tensor:
        batch, tokens, _ = inputs.shape
        outputs = keras.KerasTensor(inputs.shape, dtype=self.compute_dtype)
        scores = keras.KerasTensor(
            (batch, self.num_heads, tokens, tokens), dtype=self.compute_dtype
        )
        return (outputs, scores) if return_attention_scores else outputs

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape


@keras.saving.register_keras_serializable(package="keras_cait")
class ClassAttention(Attention):
    """Attention whose only query is the class token.

    Keys and values come from the class token and the patches. The patches do
    not change, so the cost is linear in their number.

    Args:
        num_heads: int > 0 that divides `embed_dim`.

    Call arguments:
        class_token: float tensor `(batch, 1, embed_dim)`.
        patches: float tensor `(batch, patches, embed_dim)`.
        return_attention_scores: whether to return the scores as well.
        scores_scale: tensor that broadcasts to the scores, to multiply them
            with, or `None`.

    Returns:
        Tensor `(batch, 1, embed_dim)`, to be added to the class token. With
        scores, a pair of it and `(batch, num_heads, 1, 1 + patches)`, class
        token first.

    Raises:
        ValueError: the inputs do not have rank 3, or `embed_dim` is not
            divisible by `num_heads`.

    Example:
    >>> token, patches = np.ones((2, 1, 192)), np.ones((2, 196, 192))
    >>> tuple(ClassAttention(4)(token, patches).shape)
    (2, 1, 192)

    Reference: Touvron et al., 2021, section 3; tensors
    `blocks_token_only.*.attn.*`.
    """

    def build(self, class_token_shape: Shape, patches_shape: Shape) -> None:
        check_rank(self, class_token_shape, 3, "(batch, 1, embed_dim)")
        check_rank(self, patches_shape, 3, "(batch, patches, embed_dim)")
        embed_dim = width(patches_shape)
        check_heads(embed_dim, self.num_heads)
        self.query = dense(self, "query", embed_dim, class_token_shape)
        self.key = dense(self, "key", embed_dim, patches_shape)
        self.value = dense(self, "value", embed_dim, patches_shape)
        self.proj = dense(self, "proj", embed_dim, class_token_shape)

    def call(
        self,
        class_token: Tensor,
        patches: Tensor,
        return_attention_scores: bool = False,
        scores_scale: Tensor | None = None,
    ) -> Tensor:
        tokens = ops.concatenate([class_token, patches], axis=1)  # (B, 1+N, C)
        scores = query_key_scores(
            self.query(class_token), self.key(tokens), self.num_heads
        )  # (H, B, 1, 1+N)
        scores = scaled(softmax(scores), scores_scale)
        return self._gather(scores, self.value(tokens), return_attention_scores)

    def compute_output_spec(
        self,
        class_token: Tensor,
        patches: Tensor,
        return_attention_scores: bool = False,
        scores_scale: Tensor | None = None,
    ) -> Tensor:
        batch, tokens, _ = patches.shape
        outputs = keras.KerasTensor(class_token.shape, dtype=self.compute_dtype)
        scores = keras.KerasTensor(
            (batch, self.num_heads, 1, None if tokens is None else 1 + tokens),
            dtype=self.compute_dtype,
        )
        return (outputs, scores) if return_attention_scores else outputs

    def compute_output_shape(
        self, class_token_shape: Shape, patches_shape: Shape
    ) -> Shape:
        return class_token_shape


def query_key_scores(query: Tensor, key: Tensor, num_heads: int) -> Tensor:
    """`Q K^T / sqrt(D)` of each head: (B, M, C), (B, N, C) -> (H, B, M, N).

    With the heads first, mixing them is a plain matrix product.
    """
    scale = (query.shape[-1] // num_heads) ** -0.5
    query = ops.transpose(split_heads(query * scale, num_heads), (2, 0, 1, 3))
    key = ops.transpose(split_heads(key, num_heads), (2, 0, 3, 1))
    return ops.matmul(query, key)


def scaled(scores: Tensor, scale: Tensor | None) -> Tensor:
    """Scores (H, B, M, N) times what broadcasts to (B, H, M, N), if given."""
    return (
        scores if scale is None else scores * ops.transpose(scale, (1, 0, 2, 3))
    )


def weighted_values(scores: Tensor, value: Tensor) -> Tensor:
    """Values weighted by scores: (H, B, M, N), (B, N, C) -> (B, M, C)."""
    heads, _, queries, _ = ops.shape(scores)
    embed_dim = value.shape[-1]
    value = ops.transpose(split_heads(value, heads), (2, 0, 1, 3))
    outputs = ops.transpose(ops.matmul(scores, value), (1, 2, 0, 3))
    return ops.reshape(outputs, (-1, queries, embed_dim))


def split_heads(tokens: Tensor, num_heads: int) -> Tensor:
    """(B, N, C) -> (B, N, H, D)."""
    head_dim = tokens.shape[-1] // num_heads
    return ops.reshape(tokens, (-1, ops.shape(tokens)[1], num_heads, head_dim))


def softmax(scores: Tensor) -> Tensor:
    """Softmax over the last axis, in float32 or better."""
    dtype = keras.backend.result_type(scores.dtype, "float32")
    return ops.cast(ops.softmax(ops.cast(scores, dtype)), scores.dtype)


def dense(
    layer: keras.layers.Layer, name: str, units: int, input_shape: Shape
) -> keras.layers.Dense:
    """A built sublayer with the dtype of `layer` and CaiT's initialization."""
    sublayer = keras.layers.Dense(
        units,
        kernel_initializer=BlockInitializer(),
        dtype=layer.dtype_policy,
        name=name,
    )
    sublayer.build(input_shape)
    return sublayer


def width(shape: Shape) -> int:
    """Returns the last dimension; raises ValueError if it is unknown."""
    if shape[-1] is None:
        raise ValueError(
            "The last dimension must be known. Received inputs of shape "
            f"{tuple(shape)}."
        )
    return shape[-1]


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, of Python or NumPy."""
    return isinstance(value, Real) and math.isfinite(value)


def is_positive_int(value: Any) -> bool:
    """Whether a value is a Python or NumPy integer > 0."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        return False
    return int(value) > 0


def positive_int(name: str, value: Any) -> int:
    """`value` as an int; raises ValueError unless it is an integer > 0."""
    if not is_positive_int(value):
        raise ValueError(
            f"{name} must be an integer greater than 0. "
            f"Received: {name}={value!r}."
        )
    return int(value)


def _grid(grid_size: Any) -> tuple[int, int]:
    if not isinstance(grid_size, list | tuple) or len(grid_size) != 2:
        raise ValueError(
            "grid_size must be a pair (rows, columns). "
            f"Received: grid_size={grid_size!r}. For example (14, 14)."
        )
    rows, columns = grid_size
    return positive_int("grid_size", rows), positive_int("grid_size", columns)


def check_heads(embed_dim: int, num_heads: int) -> None:
    """Raises ValueError unless the heads share the width evenly."""
    if embed_dim % num_heads:
        raise ValueError(
            "The width must be divisible by the number of heads. Received: "
            f"embed_dim={embed_dim}, num_heads={num_heads}. The published "
            "models have heads of width 48."
        )


def check_rank(
    layer: keras.layers.Layer, shape: Shape, rank: int, expected: str
) -> None:
    """Raises ValueError if inputs do not have the expected rank."""
    if len(shape) != rank:
        raise ValueError(
            f"{type(layer).__name__} expects inputs of rank {rank}, "
            f"{expected}. Received inputs of shape {tuple(shape)}."
        )
