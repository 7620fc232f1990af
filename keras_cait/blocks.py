"""The two blocks of CaiT: attention and MLP in scaled residual branches.

The residual stream keeps the dtype of the weights (float32 under a mixed
policy). A branch scaled by 1e-6 would vanish in a bfloat16 stream.
"""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_cait.layers import (
    LAYER_NORM_EPSILON,
    MLP,
    ClassAttention,
    Container,
    LayerScale,
    Shape,
    TalkingHeadsAttention,
    is_number,
)


def layer_norm(name: str, dtype: Any) -> keras.layers.Layer:
    """LayerNorm that reads the residual stream in the stream's precision."""
    return keras.layers.LayerNormalization(
        epsilon=LAYER_NORM_EPSILON, autocast=False, dtype=dtype, name=name
    )


class Block(Container):
    """The sublayers of every block.

    `norm1`, `attention` and `layer_scale_1` are the first branch, `norm2`,
    `mlp` and `layer_scale_2` the second.

    Args:
        num_heads: int > 0 that divides `embed_dim`.
        mlp_ratio: float > 0. Width of the MLP's hidden layer over `embed_dim`.
        init_values: what `scale` starts at.
        attention: class of the attention layer.
        norm: function of `(name, dtype)` that makes the norm of a branch.
        scale: function of `(init_values, dtype=..., name=...)` that makes the
            scale of a branch.
    """

    def __init__(
        self,
        num_heads: int,
        mlp_ratio: float,
        init_values: float | None,
        *,
        attention: Callable[..., keras.layers.Layer],
        norm: Callable[[str, Any], keras.layers.Layer] = layer_norm,
        scale: Callable[..., keras.layers.Layer] = LayerScale,
        **kwargs: Any,
    ):
        super().__init__(autocast=False, **kwargs)
        self.num_heads = num_heads
        self.mlp_ratio = mlp_ratio
        self.init_values = init_values
        policy = self.dtype_policy
        self.norm1 = norm("norm1", policy)
        self.attention = attention(num_heads, dtype=policy, name="attention")
        self.layer_scale_1 = scale(
            init_values, dtype=policy, name="layer_scale_1"
        )
        self.norm2 = norm("norm2", policy)
        self.mlp = MLP(mlp_ratio, dtype=policy, name="mlp")
        self.layer_scale_2 = scale(
            init_values, dtype=policy, name="layer_scale_2"
        )

    def get_config(self) -> dict[str, Any]:
        config = {
            "num_heads": self.num_heads,
            "mlp_ratio": self.mlp_ratio,
            "init_values": self.init_values,
        }
        return {**super().get_config(), **config}


@keras.saving.register_keras_serializable(package="keras_cait")
class SelfAttentionBlock(Block):
    """Talking-heads attention and MLP on the patches.

    `x = x + gamma_1 * attention(norm1(x))`, then
    `x = x + gamma_2 * mlp(norm2(x))`. In training, stochastic depth drops each
    branch for some of the images.

    Args:
        num_heads: int > 0 that divides `embed_dim`.
        mlp_ratio: float > 0. Width of the MLP's hidden layer over `embed_dim`.
        init_values: initial `gamma` of LayerScale.
        drop_path_rate: float in [0, 1). Share of images for which a branch is
            dropped in training; for the others it is scaled by
            `1 / (1 - rate)`.

    Call arguments:
        inputs: float tensor `(batch, patches, embed_dim)`.
        return_attention_scores: whether to return the attention scores as well,
            taken after the second mixing of the heads.
        training: whether stochastic depth is active.
        scores_scale: tensor that broadcasts to the scores, to multiply them
            with, or `None`.

    Returns:
        Tensor `(batch, patches, embed_dim)`. With scores, a pair of it and
        `(batch, num_heads, patches, patches)`.

    Raises:
        ValueError: an argument is out of range, or the inputs do not fit.

    Example:
    >>> tuple(SelfAttentionBlock(4)(np.ones((2, 196, 192))).shape)
    (2, 196, 192)

    Reference: Touvron et al., 2021, equation 4 and figure 2 (d); tensors
    `blocks.*`.
    """

    def __init__(
        self,
        num_heads: int,
        mlp_ratio: float = 4.0,
        init_values: float | None = 1e-5,
        drop_path_rate: float = 0.0,
        **kwargs: Any,
    ):
        kwargs.setdefault("attention", TalkingHeadsAttention)
        super().__init__(num_heads, mlp_ratio, init_values, **kwargs)
        if not (is_number(drop_path_rate) and 0 <= drop_path_rate < 1):
            raise ValueError(
                "drop_path_rate must be at least 0 and less than 1. "
                f"Received: drop_path_rate={drop_path_rate!r}."
            )
        self.drop_path_rate = drop_path_rate
        # One draw per image and branch. At rate 0 it is the identity.
        self.stochastic_depth = keras.layers.Dropout(
            drop_path_rate,
            noise_shape=(None, 1, 1),
            dtype=self.variable_dtype,
            name="stochastic_depth",
        )

    def build(self, input_shape: Shape) -> None:
        for layer in (
            self.norm1,
            self.attention,
            self.layer_scale_1,
            self.norm2,
            self.mlp,
            self.layer_scale_2,
        ):
            layer.build(input_shape)

    def call(
        self,
        inputs: Any,
        return_attention_scores: bool = False,
        training: bool | None = None,
        scores_scale: Any = None,
    ) -> Any:
        x = ops.cast(inputs, self.variable_dtype)
        branch, scores = self.attention(
            self.norm1(x),
            return_attention_scores=True,
            scores_scale=scores_scale,
        )
        branch = self.layer_scale_1(branch)
        x = x + self.stochastic_depth(branch, training=training)
        branch = self.layer_scale_2(self.mlp(self.norm2(x)))
        x = x + self.stochastic_depth(branch, training=training)
        return (x, scores) if return_attention_scores else x

    def compute_output_spec(
        self,
        inputs: Any,
        return_attention_scores: bool = False,
        training: bool | None = None,
        scores_scale: Any = None,
    ) -> Any:
        _, scores = self.attention.compute_output_spec(inputs, True)
        outputs = keras.KerasTensor(inputs.shape, dtype=self.variable_dtype)
        return (outputs, scores) if return_attention_scores else outputs

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "drop_path_rate": self.drop_path_rate}


@keras.saving.register_keras_serializable(package="keras_cait")
class ClassAttentionBlock(Block):
    """Class attention and MLP on the class token.

    The patches are read but not changed.

    Args:
        num_heads: int > 0 that divides `embed_dim`.
        mlp_ratio: float > 0. Width of the MLP's hidden layer over `embed_dim`.
        init_values: initial `gamma` of LayerScale.

    Call arguments:
        class_token: float tensor `(batch, 1, embed_dim)`.
        patches: float tensor `(batch, patches, embed_dim)`.
        return_attention_scores: whether to return the attention scores as well.
        scores_scale: as in `SelfAttentionBlock`.

    Returns:
        The new class token `(batch, 1, embed_dim)`. With scores, a pair of it
        and `(batch, num_heads, 1, 1 + patches)`, class token first.

    Raises:
        ValueError: an argument is out of range, or the inputs do not fit.

    Example:
    >>> token, patches = np.ones((2, 1, 192)), np.ones((2, 196, 192))
    >>> tuple(ClassAttentionBlock(4)(token, patches).shape)
    (2, 1, 192)

    Reference: Touvron et al., 2021, section 3; tensors `blocks_token_only.*`.
    """

    def __init__(
        self,
        num_heads: int,
        mlp_ratio: float = 4.0,
        init_values: float | None = 1e-5,
        **kwargs: Any,
    ):
        super().__init__(
            num_heads,
            mlp_ratio,
            init_values,
            attention=ClassAttention,
            **kwargs,
        )

    def build(self, class_token_shape: Shape, patches_shape: Shape) -> None:
        self.norm1.build(patches_shape)
        self.attention.build(class_token_shape, patches_shape)
        for layer in (
            self.layer_scale_1,
            self.norm2,
            self.mlp,
            self.layer_scale_2,
        ):
            layer.build(class_token_shape)

    def call(
        self,
        class_token: Any,
        patches: Any,
        return_attention_scores: bool = False,
        scores_scale: Any = None,
    ) -> Any:
        x = ops.cast(class_token, self.variable_dtype)
        branch, scores = self.attention(
            self.norm1(x),
            self.norm1(patches),
            return_attention_scores=True,
            scores_scale=scores_scale,
        )
        x = x + self.layer_scale_1(branch)
        x = x + self.layer_scale_2(self.mlp(self.norm2(x)))
        return (x, scores) if return_attention_scores else x

    def compute_output_spec(
        self,
        class_token: Any,
        patches: Any,
        return_attention_scores: bool = False,
        scores_scale: Any = None,
    ) -> Any:
        _, scores = self.attention.compute_output_spec(
            class_token, patches, True
        )
        outputs = keras.KerasTensor(
            class_token.shape, dtype=self.variable_dtype
        )
        return (outputs, scores) if return_attention_scores else outputs

    def compute_output_shape(
        self, class_token_shape: Shape, patches_shape: Shape
    ) -> Shape:
        return class_token_shape
