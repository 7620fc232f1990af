"""The two blocks of CaiT: residual branches scaled by LayerScale.

The residual stream keeps the dtype of the weights (float32 under a mixed
policy): added to a bfloat16 stream, a branch scaled by 1e-6 would be lost.
"""

import keras

from keras_cait.layers import (
    LAYER_NORM_EPSILON,
    MLP,
    ClassAttention,
    LayerScale,
    TalkingHeadsAttention,
)


@keras.saving.register_keras_serializable(package="keras_cait")
class SelfAttentionBlock(keras.layers.Layer):
    """Talking-heads attention and MLP among the patches.

    `x = x + gamma_1 * attention(norm1(x))`, then
    `x = x + gamma_2 * mlp(norm2(x))`, each branch dropped at random for whole
    images (stochastic depth) in training.

    Args:
        num_heads: int > 0 that divides the width of the inputs.
        mlp_ratio: float > 0. Width of the MLP's hidden layer over `embed_dim`.
        init_values: float. Initial `gamma` of LayerScale.
        drop_path_rate: float in [0, 1). Share of images for which a branch is
            dropped in training; the others are scaled by `1 / (1 - rate)`.

    Call arguments:
        inputs: float tensor `(batch, patches, embed_dim)`.
        return_attention_scores: bool. Also return the scores after the second
            mixing of the heads.
        training: bool. Whether stochastic depth is on.

    Returns:
        Tensor `(batch, patches, embed_dim)`; with scores, a pair with
        `(batch, num_heads, patches, patches)`.

    Raises:
        ValueError: an argument is out of its range, or the inputs do not fit.

    Example:
    >>> tuple(SelfAttentionBlock(4)(np.ones((2, 196, 192))).shape)
    (2, 196, 192)

    Reference: Touvron et al., 2021, equation 4 and figure 2 (d); tensors
    `blocks.*`.
    """

    def __init__(
        self,
        num_heads,
        mlp_ratio=4.0,
        init_values=1e-5,
        drop_path_rate=0.0,
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)
        if not 0 <= drop_path_rate < 1:
            raise ValueError(
                "drop_path_rate must be at least 0 and less than 1. "
                f"Received: drop_path_rate={drop_path_rate}."
            )
        self.num_heads = num_heads
        self.mlp_ratio = mlp_ratio
        self.init_values = init_values
        self.drop_path_rate = drop_path_rate
        policy = self.dtype_policy
        self.norm1 = layer_norm("norm1", policy)
        self.attention = TalkingHeadsAttention(
            num_heads, dtype=policy, name="attention"
        )
        self.layer_scale_1 = LayerScale(
            init_values, dtype=policy, name="layer_scale_1"
        )
        self.norm2 = layer_norm("norm2", policy)
        self.mlp = MLP(mlp_ratio, dtype=policy, name="mlp")
        self.layer_scale_2 = LayerScale(
            init_values, dtype=policy, name="layer_scale_2"
        )
        # One draw for each image and branch. At rate 0 it is the identity.
        self.stochastic_depth = keras.layers.Dropout(
            drop_path_rate,
            noise_shape=(None, 1, 1),
            dtype=self.variable_dtype,
            name="stochastic_depth",
        )

    def build(self, input_shape):
        for layer in (
            self.norm1,
            self.attention,
            self.layer_scale_1,
            self.norm2,
            self.mlp,
            self.layer_scale_2,
        ):
            layer.build(input_shape)

    def call(self, inputs, return_attention_scores=False, training=None):
        x = keras.ops.cast(inputs, self.variable_dtype)
        branch, scores = self.attention(
            self.norm1(x), return_attention_scores=True
        )
        branch = self.layer_scale_1(branch)
        x = x + self.stochastic_depth(branch, training=training)
        branch = self.layer_scale_2(self.mlp(self.norm2(x)))
        x = x + self.stochastic_depth(branch, training=training)
        return (x, scores) if return_attention_scores else x

    def compute_output_spec(
        self, inputs, return_attention_scores=False, training=None
    ):
        _, scores = self.attention.compute_output_spec(inputs, True)
        outputs = keras.KerasTensor(inputs.shape, dtype=self.variable_dtype)
        return (outputs, scores) if return_attention_scores else outputs

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        config = {
            "num_heads": self.num_heads,
            "mlp_ratio": self.mlp_ratio,
            "init_values": self.init_values,
            "drop_path_rate": self.drop_path_rate,
        }
        return {**super().get_config(), **config}


@keras.saving.register_keras_serializable(package="keras_cait")
class ClassAttentionBlock(keras.layers.Layer):
    """Class attention and MLP for the class token, which reads the patches.

    Args:
        num_heads: int > 0 that divides the width of the inputs.
        mlp_ratio: float > 0. Width of the MLP's hidden layer over `embed_dim`.
        init_values: float. Initial `gamma` of LayerScale.

    Call arguments:
        class_token: float tensor `(batch, 1, embed_dim)`.
        patches: float tensor `(batch, patches, embed_dim)`.
        return_attention_scores: bool. Also return the scores.

    Returns:
        The new class token `(batch, 1, embed_dim)`; with scores, a pair with
        `(batch, num_heads, 1, 1 + patches)`, class token first.

    Raises:
        ValueError: an argument is out of its range, or the inputs do not fit.

    Example:
    >>> token, patches = np.ones((2, 1, 192)), np.ones((2, 196, 192))
    >>> tuple(ClassAttentionBlock(4)(token, patches).shape)
    (2, 1, 192)

    Reference: Touvron et al., 2021, section 3; tensors `blocks_token_only.*`.
    """

    def __init__(self, num_heads, mlp_ratio=4.0, init_values=1e-5, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.num_heads = num_heads
        self.mlp_ratio = mlp_ratio
        self.init_values = init_values
        policy = self.dtype_policy
        self.norm1 = layer_norm("norm1", policy)
        self.attention = ClassAttention(
            num_heads, dtype=policy, name="attention"
        )
        self.layer_scale_1 = LayerScale(
            init_values, dtype=policy, name="layer_scale_1"
        )
        self.norm2 = layer_norm("norm2", policy)
        self.mlp = MLP(mlp_ratio, dtype=policy, name="mlp")
        self.layer_scale_2 = LayerScale(
            init_values, dtype=policy, name="layer_scale_2"
        )

    def build(self, class_token_shape, patches_shape):
        self.norm1.build(patches_shape)
        self.attention.build(class_token_shape, patches_shape)
        for layer in (
            self.layer_scale_1,
            self.norm2,
            self.mlp,
            self.layer_scale_2,
        ):
            layer.build(class_token_shape)

    def call(self, class_token, patches, return_attention_scores=False):
        x = keras.ops.cast(class_token, self.variable_dtype)
        branch, scores = self.attention(
            self.norm1(x), self.norm1(patches), return_attention_scores=True
        )
        x = x + self.layer_scale_1(branch)
        x = x + self.layer_scale_2(self.mlp(self.norm2(x)))
        return (x, scores) if return_attention_scores else x

    def compute_output_spec(
        self, class_token, patches, return_attention_scores=False
    ):
        _, scores = self.attention.compute_output_spec(
            class_token, patches, True
        )
        outputs = keras.KerasTensor(
            class_token.shape, dtype=self.variable_dtype
        )
        return (outputs, scores) if return_attention_scores else outputs

    def compute_output_shape(self, class_token_shape, patches_shape):
        return class_token_shape

    def get_config(self):
        config = {
            "num_heads": self.num_heads,
            "mlp_ratio": self.mlp_ratio,
            "init_values": self.init_values,
        }
        return {**super().get_config(), **config}


def layer_norm(name, dtype):
    """LayerNorm that reads the residual stream in its own precision."""
    return keras.layers.LayerNormalization(
        epsilon=LAYER_NORM_EPSILON, autocast=False, dtype=dtype, name=name
    )
