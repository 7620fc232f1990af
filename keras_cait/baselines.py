"""ViT and DeiT, and the models between them and CaiT: the paper's baselines.

The class token joins the patches before any block, or reads them in class
attention after all others. The residual branches are scaled in each of the ways
that the paper compares. With all of CaiT's choices the model is `CaiT`, weight
by weight.
"""

from os import PathLike
from typing import Any

import keras
from keras import ops

from keras_cait.blocks import SelfAttentionBlock, layer_norm
from keras_cait.layers import (
    ClassToken,
    LayerScale,
    Shape,
    TalkingHeadsAttention,
    Tensor,
    is_positive_int,
    softmax,
)
from keras_cait.transformer import (
    VisionTransformer,
    check_input_shape,
    check_sizes,
    embed_patches,
    head,
    mean_of_patches,
    read_patches,
)
from keras_cait.weights import load_weights

# Touvron et al., 2021, DeiT, table 1 (arXiv 2012.12877): `ViT(**SIZES["S"])`.
SIZES = {
    "Ti": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "S": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "B": {"embed_dim": 768, "depth": 12, "num_heads": 12},
}


@keras.saving.register_keras_serializable(package="keras_cait")
class SelfAttention(TalkingHeadsAttention):
    """Standard multi-head self-attention (no talking heads).

    Arguments, call arguments, results and errors are those of
    `TalkingHeadsAttention`. The scores are taken after the softmax.

    Example:
    >>> tuple(SelfAttention(4)(np.ones((2, 197, 192))).shape)
    (2, 197, 192)

    Reference: Dosovitskiy et al., 2020 (arXiv 2010.11929); tensors
    `blocks.*.attn.*`.
    """

    def _build_mix(self, scores_shape: Shape) -> None:
        """Nothing here: the heads are not mixed."""

    def _mix(self, scores: Tensor) -> Tensor:
        return softmax(scores)


@keras.saving.register_keras_serializable(package="keras_cait")
class ScalarScale(LayerScale):
    """Multiplies a residual branch by one learned number.

    Arguments, call arguments and results are those of `LayerScale`, which has
    one number per channel.

    Example:
    >>> tuple(ScalarScale(0.0)(np.ones((1, 2, 3))).shape)
    (1, 2, 3)

    Reference: Bachlechner et al., 2020 (ReZero, arXiv 2003.04887); De and
    Smith, 2020 (SkipInit, arXiv 2002.10444).
    """

    def build(self, input_shape: Shape) -> None:
        super().build((*input_shape[:-1], 1))


@keras.saving.register_keras_serializable(package="keras_cait")
class ResidualBlock(SelfAttentionBlock):
    """Self-attention and MLP, with any of the paper's residual scalings.

    `x = x + a * attention(norm1(x))`, then `x = x + b * mlp(norm2(x))`. Call
    arguments and results are those of `SelfAttentionBlock`.

    Args:
        num_heads: int > 0 that divides `embed_dim`.
        mlp_ratio: float > 0. Width of the MLP's hidden layer over `embed_dim`.
        residual_scaling: factor of a branch. `"none"`: no factor. `"rezero"`
            and `"fixup"`: one learned number that starts at 0 and 1.
            `"scalar"`: one that starts at `init_values`. `"layer_scale"`: one
            per channel, which start at `init_values`.
        init_values: float, only for `"scalar"` and `"layer_scale"`.
        pre_norm: whether the branches start with a LayerNorm.
        talking_heads: whether the heads are mixed before and after softmax.
        drop_path_rate: float in [0, 1). Stochastic depth, as in
            `SelfAttentionBlock`.

    Raises:
        ValueError: an argument is out of range, or two conflict.

    Example:
    >>> tuple(ResidualBlock(4)(np.ones((2, 197, 192))).shape)
    (2, 197, 192)

    Reference: Touvron et al., 2021, figure 2: (a) is `"none"`; (b) `"rezero"`
    or `"fixup"` with `pre_norm=False`; (c) a number and a norm; (d)
    `"layer_scale"`.
    """

    def __init__(
        self,
        num_heads: int,
        mlp_ratio: float = 4.0,
        residual_scaling: str = "none",
        init_values: float | None = None,
        pre_norm: bool = True,
        talking_heads: bool = False,
        drop_path_rate: float = 0.0,
        **kwargs: Any,
    ):
        _check_scaling(residual_scaling, init_values)
        super().__init__(
            num_heads,
            mlp_ratio,
            init_values,
            drop_path_rate,
            attention=TalkingHeadsAttention if talking_heads else SelfAttention,
            norm=layer_norm if pre_norm else _no_norm,
            scale=RESIDUAL_SCALINGS[residual_scaling],
            **kwargs,
        )
        self.residual_scaling = residual_scaling
        self.pre_norm = pre_norm
        self.talking_heads = talking_heads

    def get_config(self) -> dict[str, Any]:
        config = {
            "residual_scaling": self.residual_scaling,
            "pre_norm": self.pre_norm,
            "talking_heads": self.talking_heads,
        }
        return {**super().get_config(), **config}


def _no_norm(name: str, dtype: Any) -> keras.layers.Layer:
    dtype = keras.dtype_policies.get(dtype).variable_dtype
    return keras.layers.Identity(dtype=dtype, name=name)


def _no_scale(init_values: None, dtype: Any, name: str) -> keras.layers.Layer:
    return _no_norm(name, dtype)


def _rezero(init_values: None, **kwargs: Any) -> ScalarScale:
    return ScalarScale(0.0, **kwargs)


def _fixup(init_values: None, **kwargs: Any) -> ScalarScale:
    return ScalarScale(1.0, **kwargs)


# How the scale of a branch is made from `init_values`.
RESIDUAL_SCALINGS = {
    "none": _no_scale,
    "rezero": _rezero,
    "fixup": _fixup,
    "scalar": ScalarScale,
    "layer_scale": LayerScale,
}


@keras.saving.register_keras_serializable(package="keras_cait")
class ViT(VisionTransformer):
    """ViT and DeiT, and the models between them and CaiT.

    Layers, names and the arguments not listed are those of `CaiT`. The class
    token has no position of its own: ViT only uses their sum. Stochastic depth
    has the same rate in every block. Images are normalized as for DeiT. Those
    of Google's ViTs, such as `vit_base_patch16_224.augreg_in21k_ft_in1k`, are
    in -1...1 instead: use `include_preprocessing=False` in a `keras.Sequential`
    after `keras.layers.Rescaling(1 / 127.5, -1)`.

    Args:
        class_token_depth: int in 0...`depth - 1`. The block before which the
            class token joins the patches. 0 is ViT and DeiT; `None` is 0. Must
            be `None` with average pooling and with class attention.
        class_attention_depth: number of class-attention blocks after all
            others, in which the class token reads the patches.
        residual_scaling: `"none"`, `"rezero"`, `"fixup"`, `"scalar"` or
            `"layer_scale"`, as in `ResidualBlock`. Class-attention blocks
            always have LayerScale, which starts at 1 unless this is
            `"layer_scale"`. `"fixup"` also initializes kernels its own way.
        init_values: float, only for `"scalar"` and `"layer_scale"`.
        pre_norm: whether the branches start with a LayerNorm.
        talking_heads: whether the heads are mixed before and after softmax.
        pooling: `"token"`, the class token; or `"avg"`, the mean of the
            patches, without a class token. Both after the last norm.

    Returns:
        A `keras.Model` from images `(batch, height, width, channels)` to
        `(batch, classes)`, or without a head to `(batch, embed_dim)`.

    Raises:
        ValueError: an argument is out of range, or two conflict.

    Example:
    >>> model = ViT(**SIZES["Ti"], input_shape=(32, 48, 3))
    >>> tuple(model(np.zeros((2, 32, 48, 3), "uint8")).shape)
    (2, 1000)

    Reference: Dosovitskiy et al., 2020 (arXiv 2010.11929); Touvron et al.,
    2021 (arXiv 2012.12877 and 2103.17239); timm's `vision_transformer.py`.
    """

    class_token_depth: int | None
    residual_scaling: str
    pre_norm: bool
    talking_heads: bool

    def __init__(
        self,
        embed_dim: int,
        depth: int,
        num_heads: int,
        patch_size: int = 16,
        mlp_ratio: float = 4.0,
        class_token_depth: int | None = None,
        class_attention_depth: int = 0,
        residual_scaling: str = "none",
        init_values: float | None = None,
        pre_norm: bool = True,
        talking_heads: bool = False,
        drop_path_rate: float = 0.0,
        include_top: bool = True,
        weights: str | PathLike[str] | None = None,
        input_shape: Shape = (224, 224, 3),
        pooling: str = "token",
        classes: int = 1000,
        classifier_activation: Any = "softmax",
        include_preprocessing: bool = True,
        grid_size: tuple[int, int] | None = None,
        dtype: Any = None,
        name: str | None = None,
    ):
        embed_dim, depth, num_heads, patch_size, classes = check_sizes(
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            patch_size=patch_size,
            classes=classes,
        )
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
        x = embed_patches(
            images,
            embed_dim,
            patch_size,
            grid_size,
            include_preprocessing,
            policy,
        )
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
            x = read_patches(
                x,
                class_attention_depth,
                num_heads,
                mlp_ratio,
                init_values if residual_scaling == "layer_scale" else 1.0,
                policy,
            )

        norm = layer_norm("norm", policy)
        if pooling == "avg":
            x = mean_of_patches(norm(x), policy)
        else:
            x = norm(x[:, 0])
        if include_top:
            x = head(x, classes, classifier_activation, policy)

        super().__init__(
            images,
            images,
            x,
            policy,
            name,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            patch_size=patch_size,
            mlp_ratio=mlp_ratio,
            class_token_depth=class_token_depth,
            class_attention_depth=class_attention_depth,
            residual_scaling=residual_scaling,
            init_values=init_values,
            pre_norm=pre_norm,
            talking_heads=talking_heads,
            drop_path_rate=drop_path_rate,
            include_top=include_top,
            input_shape=input_shape,
            pooling=pooling,
            classes=classes,
            classifier_activation=classifier_activation,
            include_preprocessing=include_preprocessing,
        )
        if residual_scaling == "fixup":
            _initialize_fixup(self)
        if weights is not None:
            load_weights(self, weights)


def _initialize_fixup(model: ViT) -> None:
    """Fixup's initialization: every branch, and the model, starts at 0.

    In L branches of m layers, the first layers are scaled by L^(-1/(2m-2)), and
    the last ones start at 0, as does the head. Here L = 2 * depth and m = 2:
    `qkv` (also queries and keys) and `proj`, `fc1` and `fc2`. The biases of the
    dense layers include Fixup's scalar biases.

    Reference: Zhang et al., 2019, section 3 (arXiv 1901.09321).
    """
    for block in model.self_attention_blocks:
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
    class_token_depth: int | None,
    class_attention_depth: int,
    depth: int,
    pooling: str,
) -> int | None:
    """The block before which the class token joins the patches, if any."""
    if not (
        class_attention_depth == 0 or is_positive_int(class_attention_depth)
    ):
        raise ValueError(
            "class_attention_depth must be an integer, 0 or more. Received: "
            f"class_attention_depth={class_attention_depth!r}."
        )
    if pooling == "avg" and class_attention_depth:
        raise ValueError(
            "Average pooling has no class token. Received: "
            f'class_attention_depth={class_attention_depth} with pooling="avg".'
            ' Use class_attention_depth=0, or pooling="token".'
        )
    if pooling == "avg" or class_attention_depth:
        if class_token_depth is not None:
            raise ValueError(
                "class_token_depth must be None with average pooling (no class "
                "token) and with class attention (the class token enters after "
                f"all blocks). Received: class_token_depth={class_token_depth}."
            )
        return None
    entry = class_token_depth or 0
    if entry not in range(depth):
        raise ValueError(
            "class_token_depth must be an integer from 0 to depth - 1, or the "
            "class token would see no patch. Received: "
            f"class_token_depth={class_token_depth}, depth={depth}. If it "
            "should enter after all blocks, use class_attention_depth=2."
        )
    return entry


def _check_scaling(residual_scaling: str, init_values: float | None) -> None:
    if residual_scaling not in RESIDUAL_SCALINGS:
        raise ValueError(
            f"residual_scaling must be one of {', '.join(RESIDUAL_SCALINGS)}. "
            f"Received: {residual_scaling!r}."
        )
    is_needed = residual_scaling in ("scalar", "layer_scale")
    if is_needed != (init_values is not None):
        raise ValueError(
            'init_values is needed by "scalar" and "layer_scale", and only by '
            f"these. Received: residual_scaling={residual_scaling!r}, "
            f"init_values={init_values}."
        )
