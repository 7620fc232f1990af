"""ViT and DeiT, and what lies between them and CaiT: the paper's baselines.

One model in which the class token enters before any block, or reads the patches
in class attention afterwards, and residual branches are scaled in each of the
ways that the paper compares. With all of CaiT's choices it is `CaiT`, weight by
weight.
"""

import keras
from keras import ops

from keras_cait.blocks import ClassAttentionBlock, layer_norm
from keras_cait.layers import (
    MLP,
    ClassToken,
    LayerScale,
    PatchEmbedding,
    PositionEmbedding,
    TalkingHeadsAttention,
    check_heads,
    check_rank,
    dense,
    kernel_initializer,
    positive_int,
    query_key_scores,
    softmax,
    weighted_values,
)
from keras_cait.models import check_input_shape, normalization
from keras_cait.weights import load_weights

# Touvron et al., 2021, DeiT, table 1 (arXiv 2012.12877): `ViT(**SIZES["S"])`.
SIZES = {
    "Ti": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "S": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "B": {"embed_dim": 768, "depth": 12, "num_heads": 12},
}

# Initial value of what multiplies a branch; `None`: it is `init_values`.
RESIDUAL_SCALINGS = {
    "none": 1.0,
    "rezero": 0.0,
    "fixup": 1.0,
    "scalar": None,
    "layer_scale": None,
}


@keras.saving.register_keras_serializable(package="keras_cait")
class SelfAttention(TalkingHeadsAttention):
    """Multi-head self-attention whose heads do not talk.

    Arguments, call arguments, results and errors are those of
    `TalkingHeadsAttention`; the scores are those after the softmax.

    Example:
    >>> tuple(SelfAttention(4)(np.ones((2, 197, 192))).shape)
    (2, 197, 192)

    Reference: Dosovitskiy et al., 2020 (arXiv 2010.11929); tensors
    `blocks.*.attn.*`.
    """

    def build(self, input_shape):
        check_rank(self, input_shape, 3, "(batch, tokens, embed_dim)")
        embed_dim = input_shape[-1]
        check_heads(embed_dim, self.num_heads)
        self.qkv = dense(self, "qkv", 3 * embed_dim)
        self.qkv.build(input_shape)
        self.proj = dense(self, "proj", embed_dim)
        self.proj.build(input_shape)

    def call(self, inputs, return_attention_scores=False):
        query, key, value = ops.split(self.qkv(inputs), 3, axis=-1)
        scores = softmax(query_key_scores(query, key, self.num_heads))
        outputs = self.proj(weighted_values(scores, value))
        if return_attention_scores:
            return outputs, ops.transpose(scores, (1, 0, 2, 3))
        return outputs


@keras.saving.register_keras_serializable(package="keras_cait")
class ScalarScale(LayerScale):
    """Multiplies a residual branch by one learned number.

    Arguments, call arguments and results are those of `LayerScale`, whose
    `gamma` has a number for each channel instead.

    Example:
    >>> tuple(ScalarScale(0.0)(np.ones((1, 2, 3))).shape)
    (1, 2, 3)

    Reference: Bachlechner et al., 2020 (ReZero, arXiv 2003.04887); De and
    Smith, 2020 (SkipInit, arXiv 2002.10444).
    """

    def build(self, input_shape):
        super().build((*input_shape[:-1], 1))


@keras.saving.register_keras_serializable(package="keras_cait")
class ResidualBlock(keras.layers.Layer):
    """Self-attention and MLP, with any of the paper's residual scalings.

    `x = x + a * attention(norm1(x))`, then `x = x + b * mlp(norm2(x))`.

    Args:
        num_heads: int > 0 that divides the width of the inputs.
        mlp_ratio: float > 0. Width of the MLP's hidden layer over `embed_dim`.
        residual_scaling: what multiplies a branch: `"none"`, nothing;
            `"rezero"` and `"fixup"`, one learned number that starts at 0 and
            1; `"scalar"`, one that starts at `init_values`; `"layer_scale"`,
            one for each channel, which start there.
        init_values: float, for `"scalar"` and `"layer_scale"` alone.
        pre_norm: bool. Whether branches start with a LayerNorm.
        talking_heads: bool. Whether heads are mixed before and after softmax.
        drop_path_rate: float in [0, 1). Share of images for which a branch is
            dropped in training; the others are scaled by `1 / (1 - rate)`.

    Call arguments:
        inputs: float tensor `(batch, tokens, embed_dim)`.
        training: bool. Whether stochastic depth is on.

    Returns:
        Tensor of the same shape, in the dtype of the weights.

    Raises:
        ValueError: an argument is out of its range, or two do not fit.

    Example:
    >>> tuple(ResidualBlock(4)(np.ones((2, 197, 192))).shape)
    (2, 197, 192)

    Reference: Touvron et al., 2021, figure 2: (a) is `"none"`; (b) `"rezero"`
    or `"fixup"` with `pre_norm=False`; (c) a number and a norm; (d)
    `"layer_scale"`.
    """

    def __init__(
        self,
        num_heads,
        mlp_ratio=4.0,
        residual_scaling="none",
        init_values=None,
        pre_norm=True,
        talking_heads=False,
        drop_path_rate=0.0,
        **kwargs,
    ):
        super().__init__(autocast=False, **kwargs)
        _check_scaling(residual_scaling, init_values)
        self.num_heads = num_heads
        self.mlp_ratio = mlp_ratio
        self.residual_scaling = residual_scaling
        self.init_values = init_values
        self.pre_norm = pre_norm
        self.talking_heads = talking_heads
        self.drop_path_rate = drop_path_rate
        attention = TalkingHeadsAttention if talking_heads else SelfAttention
        policy = self.dtype_policy
        self.norm1 = self._norm("norm1")
        self.attention = attention(num_heads, dtype=policy, name="attention")
        self.layer_scale_1 = self._scale("layer_scale_1")
        self.norm2 = self._norm("norm2")
        self.mlp = MLP(mlp_ratio, dtype=policy, name="mlp")
        self.layer_scale_2 = self._scale("layer_scale_2")
        # One draw for each image and branch. At rate 0 it is the identity.
        self.stochastic_depth = keras.layers.Dropout(
            drop_path_rate,
            noise_shape=(None, 1, 1),
            dtype=self.variable_dtype,
            name="stochastic_depth",
        )

    def _norm(self, name):
        if not self.pre_norm:
            return keras.layers.Identity(dtype=self.variable_dtype, name=name)
        return layer_norm(name, self.dtype_policy)

    def _scale(self, name):
        if self.residual_scaling == "none":
            return keras.layers.Identity(dtype=self.variable_dtype, name=name)
        start = RESIDUAL_SCALINGS[self.residual_scaling]
        is_layer_scale = self.residual_scaling == "layer_scale"
        scale = LayerScale if is_layer_scale else ScalarScale
        return scale(
            self.init_values if start is None else start,
            dtype=self.dtype_policy,
            name=name,
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

    def call(self, inputs, training=None):
        x = ops.cast(inputs, self.variable_dtype)
        branch = self.layer_scale_1(self.attention(self.norm1(x)))
        x = x + self.stochastic_depth(branch, training=training)
        branch = self.layer_scale_2(self.mlp(self.norm2(x)))
        return x + self.stochastic_depth(branch, training=training)

    def compute_output_spec(self, inputs, training=None):
        return keras.KerasTensor(inputs.shape, dtype=self.variable_dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        config = {
            "num_heads": self.num_heads,
            "mlp_ratio": self.mlp_ratio,
            "residual_scaling": self.residual_scaling,
            "init_values": self.init_values,
            "pre_norm": self.pre_norm,
            "talking_heads": self.talking_heads,
            "drop_path_rate": self.drop_path_rate,
        }
        return {**super().get_config(), **config}


@keras.saving.register_keras_serializable(package="keras_cait")
class ViT(keras.Model):
    """ViT and DeiT, and the models between them and CaiT.

    Layers, names and the arguments that are not listed are those of `CaiT`.
    The class token has no position of its own: in ViT the two are only ever
    added up. Stochastic depth has the same rate in every block.

    Args:
        class_token_depth: int in 0...`depth - 1`. The block before which the
            class token joins the patches: 0 is ViT and DeiT. `None` is 0; not
            for average pooling, nor with class attention.
        class_attention_depth: int. Number of class-attention blocks, through
            which the class token then reads the patches, after all others.
        residual_scaling: `"none"`, `"rezero"`, `"fixup"`, `"scalar"` or
            `"layer_scale"`, as for `ResidualBlock`. Class-attention blocks
            have LayerScale in any case, which starts at 1 unless it is
            `"layer_scale"`. `"fixup"` also starts the kernels in its own way.
        init_values: float, for `"scalar"` and `"layer_scale"` alone.
        pre_norm: bool. Whether branches start with a LayerNorm.
        talking_heads: bool. Whether heads are mixed before and after softmax.
        pooling: `"token"`, the class embedding; or `"avg"`, the mean of the
            patches, without a class token. Both after the last norm.

    Returns:
        A `keras.Model` of images `(batch, height, width, channels)` to
        `(batch, classes)`, or without a head to `(batch, embed_dim)`.

    Raises:
        ValueError: an argument is out of its range, or two do not fit.

    Example:
    >>> model = ViT(**SIZES["Ti"], input_shape=(32, 48, 3))
    >>> tuple(model(np.zeros((2, 32, 48, 3), "uint8")).shape)
    (2, 1000)

    Reference: Dosovitskiy et al., 2020 (arXiv 2010.11929); Touvron et al.,
    2021 (arXiv 2012.12877 and 2103.17239); timm's `vision_transformer.py`.
    """

    def __init__(
        self,
        embed_dim,
        depth,
        num_heads,
        patch_size=16,
        mlp_ratio=4.0,
        class_token_depth=None,
        class_attention_depth=0,
        residual_scaling="none",
        init_values=None,
        pre_norm=True,
        talking_heads=False,
        drop_path_rate=0.0,
        include_top=True,
        weights=None,
        input_shape=(224, 224, 3),
        pooling="token",
        classes=1000,
        classifier_activation="softmax",
        include_preprocessing=True,
        grid_size=None,
        dtype=None,
        name=None,
    ):
        positive_int("depth", depth)
        positive_int("classes", classes)
        check_input_shape(input_shape)
        if pooling not in ("token", "avg"):
            raise ValueError(
                'pooling must be "token" or "avg". '
                f"Received: pooling={pooling!r}."
            )
        entry = _class_token_entry(
            class_token_depth, class_attention_depth, depth, pooling
        )
        policy = keras.dtype_policies.get(dtype or keras.config.dtype_policy())

        images = keras.Input(input_shape, name="images")
        x = images
        if include_preprocessing:
            x = normalization(input_shape[-1])(x)
        x = PatchEmbedding(
            embed_dim, patch_size, dtype=policy, name="patch_embedding"
        )(x)
        x = PositionEmbedding(
            grid_size, dtype=policy, name="position_embedding"
        )(x)
        for i in range(depth):
            if i == entry:
                token = ClassToken(dtype=policy, name="class_token")(x)
                x = keras.layers.Concatenate(
                    axis=1, dtype=policy.variable_dtype, name="tokens"
                )([token, x])
            x = ResidualBlock(
                num_heads,
                mlp_ratio,
                residual_scaling,
                init_values,
                pre_norm,
                talking_heads,
                drop_path_rate,
                dtype=policy,
                name=f"self_attention_block_{i}",
            )(x)
        if class_attention_depth:
            token = ClassToken(dtype=policy, name="class_token")(x)
        for i in range(class_attention_depth):
            token = ClassAttentionBlock(
                num_heads,
                mlp_ratio,
                init_values if residual_scaling == "layer_scale" else 1.0,
                dtype=policy,
                name=f"class_attention_block_{i}",
            )(token, x)

        norm = layer_norm("norm", policy)
        if pooling == "avg":
            x = keras.layers.GlobalAveragePooling1D(name="pooling")(norm(x))
        else:
            x = norm((token if class_attention_depth else x)[:, 0])
        if include_top:
            x = keras.layers.Dense(
                classes,
                activation=classifier_activation,
                kernel_initializer=kernel_initializer(),
                dtype=policy.variable_dtype,
                name="head",
            )(x)

        super().__init__(inputs=images, outputs=x, name=name)
        self.embed_dim = embed_dim
        self.depth = depth
        self.num_heads = num_heads
        self.patch_size = patch_size
        self.mlp_ratio = mlp_ratio
        self.class_token_depth = class_token_depth
        self.class_attention_depth = class_attention_depth
        self.residual_scaling = residual_scaling
        self.init_values = init_values
        self.pre_norm = pre_norm
        self.talking_heads = talking_heads
        self.drop_path_rate = drop_path_rate
        self.include_top = include_top
        self.image_shape = tuple(input_shape)
        self.pooling = pooling
        self.classes = classes
        self.classifier_activation = classifier_activation
        self.include_preprocessing = include_preprocessing
        self.grid_size = self.get_layer("position_embedding").grid_size
        self.dtype_policy = policy  # by which compile() scales the loss
        if residual_scaling == "fixup":
            _start_as_fixup(self)
        if weights is not None:
            load_weights(self, weights)

    def get_config(self):
        return {
            "embed_dim": self.embed_dim,
            "depth": self.depth,
            "num_heads": self.num_heads,
            "patch_size": self.patch_size,
            "mlp_ratio": self.mlp_ratio,
            "class_token_depth": self.class_token_depth,
            "class_attention_depth": self.class_attention_depth,
            "residual_scaling": self.residual_scaling,
            "init_values": self.init_values,
            "pre_norm": self.pre_norm,
            "talking_heads": self.talking_heads,
            "drop_path_rate": self.drop_path_rate,
            "include_top": self.include_top,
            "input_shape": self.image_shape,
            "pooling": self.pooling,
            "classes": self.classes,
            "classifier_activation": keras.saving.serialize_keras_object(
                self.classifier_activation
            ),
            "include_preprocessing": self.include_preprocessing,
            "grid_size": self.grid_size,
            "dtype": keras.saving.serialize_keras_object(self.dtype_policy),
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return cls(
            **{
                key: keras.saving.deserialize_keras_object(
                    value, custom_objects
                )
                for key, value in config.items()
            }
        )


def _start_as_fixup(model):
    """Fixup's start: the branches, and so the model, answer 0.

    Of L branches of m layers, the first layers are scaled by L^(-1/(2m-2)) and
    the last ones are 0, as is the head. Here L = 2 * depth and m = 2: values
    and their projection, `fc1` and `fc2`. Its scalar biases are contained in
    those of the dense layers.

    Reference: Zhang et al., 2019, section 3 (arXiv 1901.09321).
    """
    for i in range(model.depth):
        block = model.get_layer(f"self_attention_block_{i}")
        for first, last in (
            (block.attention.qkv, block.attention.proj),
            (block.mlp.fc1, block.mlp.fc2),
        ):
            first.kernel.assign(first.kernel * (2 * model.depth) ** -0.5)
            last.kernel.assign(ops.zeros(last.kernel.shape))
    if model.include_top:
        head = model.get_layer("head")
        head.kernel.assign(ops.zeros(head.kernel.shape))


def _class_token_entry(
    class_token_depth, class_attention_depth, depth, pooling
):
    """The block before which the class token joins the patches, or `None`."""
    if pooling == "avg" and class_attention_depth:
        raise ValueError(
            "Average pooling has no class token. Received: "
            f'class_attention_depth={class_attention_depth} with pooling="avg".'
            ' Use class_attention_depth=0, or pooling="token".'
        )
    if pooling == "avg" or class_attention_depth:
        if class_token_depth is not None:
            raise ValueError(
                "class_token_depth must be None with average pooling, which "
                "has no class token, and with class attention, where it "
                "enters after all blocks. Received: "
                f"class_token_depth={class_token_depth}."
            )
        return None
    entry = class_token_depth or 0
    if not 0 <= entry < depth:
        raise ValueError(
            "class_token_depth must be at least 0 and less than depth, else "
            "the class token would see no patch. Received: "
            f"class_token_depth={class_token_depth}, depth={depth}. To let it "
            "enter after all blocks, use class_attention_depth=2."
        )
    return entry


def _check_scaling(residual_scaling, init_values):
    if residual_scaling not in RESIDUAL_SCALINGS:
        raise ValueError(
            f"residual_scaling must be one of {', '.join(RESIDUAL_SCALINGS)}. "
            f"Received: {residual_scaling!r}."
        )
    is_needed = RESIDUAL_SCALINGS[residual_scaling] is None
    if is_needed != (init_values is not None):
        raise ValueError(
            'init_values is needed by "scalar" and "layer_scale", and by these '
            f"alone. Received: residual_scaling={residual_scaling!r}, "
            f"init_values={init_values}."
        )
