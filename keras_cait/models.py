"""CaiT as a Keras model, and the ten variants of the paper."""

from os import PathLike
from typing import Any, NamedTuple

import keras

from keras_cait.blocks import SelfAttentionBlock, layer_norm
from keras_cait.initializers import filled_later
from keras_cait.layers import Shape
from keras_cait.pretrained import nearest_pretrained
from keras_cait.transformer import (
    VisionTransformer,
    check_input_shape,
    check_sizes,
    embed_patches,
    head,
    mean_of_patches,
    read_patches,
)
from keras_cait.weights import load_pretrained, load_weights


class Variant(NamedTuple):
    """The hyperparameters in which the variants of the paper differ."""

    embed_dim: int
    depth: int
    num_heads: int
    init_values: float
    drop_path_rate: float
    image_size: int


# Widths, heads and depths: Touvron et al., 2021, table 3. Stochastic depth and
# LayerScale: as in the published models. XS36, S48 and M24 were not published;
# their LayerScale depends on the depth. `image_size`: the smallest one with
# pretrained weights, otherwise 224.
VARIANTS = {
    "XXS24": Variant(192, 24, 4, 1e-5, 0.05, 224),
    "XXS36": Variant(192, 36, 4, 1e-5, 0.1, 224),
    "XS24": Variant(288, 24, 6, 1e-5, 0.05, 384),
    "XS36": Variant(288, 36, 6, 1e-6, 0.1, 224),
    "S24": Variant(384, 24, 8, 1e-5, 0.1, 224),
    "S36": Variant(384, 36, 8, 1e-6, 0.2, 384),
    "S48": Variant(384, 48, 8, 1e-6, 0.3, 224),
    "M24": Variant(768, 24, 16, 1e-5, 0.2, 224),
    "M36": Variant(768, 36, 16, 1e-6, 0.3, 384),
    "M48": Variant(768, 48, 16, 1e-6, 0.4, 448),
}


@keras.saving.register_keras_serializable(package="keras_cait")
class CaiT(VisionTransformer):
    """Class-Attention in Image Transformers, of any size.

    Self-attention blocks process the patches. A class token then reads them in
    class-attention blocks, which do not change the patches. LayerScale scales
    every residual branch.

    The model is a Functional graph of few layers, named `patch_embedding`,
    `position_embedding`, `self_attention_block_0` ..., `class_token`,
    `class_attention_block_0` ..., `norm` and `head`. Any intermediate is
    `model.get_layer(name).output`. `model.self_attention_blocks` and
    `model.class_attention_blocks` are lists of the blocks.

    Args:
        embed_dim: int > 0. Width of a token.
        depth: int > 0. Number of self-attention blocks.
        num_heads: int > 0 that divides `embed_dim`. Attention heads.
        patch_size: int > 0. Side of a patch in pixels.
        mlp_ratio: float > 0. Width of the MLPs over `embed_dim`.
        class_attention_depth: int > 0. Number of class-attention blocks.
        init_values: initial gamma of LayerScale. `None` depends on the depth,
            as in the paper: 0.1 up to 18 blocks, 1e-5 up to 24, 1e-6 beyond.
        drop_path_rate: float in [0, 1). Stochastic depth of every
            self-attention block. Class attention has none.
        include_top: whether the model ends with the classifier `head`.
        weights: `None` (random initialization) or the path of a file that
            `load_weights` reads. The variants, such as `CaiT_S24`, have
            pretrained weights.
        input_tensor: Keras tensor to use as the input, or `None`.
        input_shape: `(height, width, channels)`. Height and width are
            multiples of the patch size, or `None` if the size of the images is
            only known when the model runs.
        pooling: features of the head, or outputs without a head, all after the
            last norm. `"token"`: the class token `(batch, embed_dim)`.
            `"avg"`: the mean of the patch tokens `(batch, embed_dim)`. `None`
            (only without a head): all tokens `(batch, 1 + patches,
            embed_dim)`, class token first.
        classes: int > 0. Number of classes of the head.
        classifier_activation: activation of the head. `None` returns logits.
        include_preprocessing: whether the model takes RGB in 0...255 (uint8 or
            float) and normalizes it with ImageNet's mean and standard
            deviation. Otherwise it takes normalized images. With a number of
            channels other than 3, it scales 0...255 to -1...1.
        grid_size: grid `(rows, columns)` of the learned positions. `None` is
            the grid of `input_shape`, or that of a 224 x 224 image if the size
            is unknown.
        dtype: dtype or policy of all layers. `None` is Keras' global policy.
        name: name of the model.

    Returns:
        A `keras.Model` from images `(batch, height, width, channels)` to
        `(batch, classes)`, or to the features that `pooling` selects.

    Raises:
        ValueError: an argument is out of range, or two conflict.

    Example:
    >>> model = CaiT(192, depth=4, num_heads=4, input_shape=(64, 96, 3))
    >>> tuple(model(np.zeros((2, 64, 96, 3), "uint8")).shape)
    (2, 1000)

    Reference: [Touvron et al., 2021](https://arxiv.org/abs/2103.17239).
    """

    def __init__(
        self,
        embed_dim: int,
        depth: int,
        num_heads: int,
        patch_size: int = 16,
        mlp_ratio: float = 4.0,
        class_attention_depth: int = 2,
        init_values: float | None = None,
        drop_path_rate: float = 0.0,
        include_top: bool = True,
        weights: str | PathLike[str] | None = None,
        input_tensor: Any = None,
        input_shape: Shape = (224, 224, 3),
        pooling: str | None = "token",
        classes: int = 1000,
        classifier_activation: Any = "softmax",
        include_preprocessing: bool = True,
        grid_size: tuple[int, int] | None = None,
        dtype: Any = None,
        name: str | None = None,
    ):
        if weights == "imagenet":
            raise ValueError(
                "Only the variants have pretrained weights. Received: CaiT("
                'weights="imagenet"). Use for example '
                'CaiT_S24(weights="imagenet"), or the path of a file.'
            )
        embed_dim, depth, num_heads, patch_size = check_sizes(
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            patch_size=patch_size,
        )
        class_attention_depth, classes = check_sizes(
            class_attention_depth=class_attention_depth, classes=classes
        )
        _check_pooling(pooling, include_top)
        if init_values is None:
            init_values = init_values_by_depth(depth)
        policy = keras.dtype_policies.get(dtype or keras.config.dtype_policy())

        if input_tensor is None:
            check_input_shape(input_shape)
            inputs = images = keras.Input(input_shape, name="images")
        else:
            images = input_tensor
            sources = keras.utils.get_source_inputs(images)
            inputs = sources[0] if len(sources) == 1 else sources
            input_shape = tuple(images.shape[1:])
            check_input_shape(input_shape)

        patches = embed_patches(
            images,
            embed_dim,
            patch_size,
            grid_size,
            include_preprocessing,
            policy,
        )
        with filled_later(weights is not None):
            for i in range(depth):
                patches = SelfAttentionBlock(
                    num_heads,
                    mlp_ratio,
                    init_values,
                    drop_path_rate,
                    dtype=policy,
                    name=f"self_attention_block_{i}",
                )(patches)
            token = read_patches(
                patches,
                class_attention_depth,
                num_heads,
                mlp_ratio,
                init_values,
                policy,
            )

        norm = layer_norm("norm", policy)
        if pooling == "token":
            x = keras.layers.Reshape(
                (embed_dim,), dtype=policy.variable_dtype, name="pooling"
            )(norm(token))
        elif pooling == "avg":
            x = mean_of_patches(norm(patches), policy)
        else:
            x = norm(
                keras.layers.Concatenate(
                    axis=1, dtype=policy.variable_dtype, name="tokens"
                )([token, patches])
            )
        if include_top:
            x = head(x, classes, classifier_activation, policy)

        super().__init__(
            inputs,
            images,
            x,
            policy,
            name,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            patch_size=patch_size,
            mlp_ratio=mlp_ratio,
            class_attention_depth=class_attention_depth,
            init_values=init_values,
            drop_path_rate=drop_path_rate,
            include_top=include_top,
            input_shape=input_shape,
            pooling=pooling,
            classes=classes,
            classifier_activation=classifier_activation,
            include_preprocessing=include_preprocessing,
        )
        if weights is not None:
            load_weights(self, weights)


VARIANT_DOCSTRING = """CaiT-{variant} of the paper.

    {depth} self-attention blocks, {embed_dim} wide, with {num_heads} heads.

    Args:
        weights: `"imagenet"` (the pretrained weights of the nearest size, with
            positions resampled to `input_shape`), `None` (random
            initialization), or the path of a file that `load_weights` reads.
        input_shape: `(height, width, channels)`. `None` is
            `({size}, {size}, 3)`.
        drop_path_rate: float in [0, 1). Stochastic depth. `None` is the
            published {drop_path_rate}.

    The other arguments are those of `CaiT`.

    Returns:
        A `CaiT` model.

    Raises:
        ValueError: an argument is out of range, two conflict, or the variant
            has no pretrained weights.
        OSError: the pretrained weights are neither in the cache nor reachable.

    Example:
    >>> CaiT_{variant}(weights=None).output_shape
    (None, 1000)

    Reference: [Touvron et al., 2021](https://arxiv.org/abs/2103.17239).
    """


def _variant(variant: str):
    """Makes the function `CaiT_<variant>`, as in `keras.applications`."""
    config = VARIANTS[variant]._asdict()
    size = config.pop("image_size")
    default_name = f"cait_{variant.lower()}"

    def build(
        include_top: bool = True,
        weights: str | PathLike[str] | None = "imagenet",
        input_tensor: Any = None,
        input_shape: Shape | None = None,
        pooling: str | None = "token",
        classes: int = 1000,
        classifier_activation: Any = "softmax",
        include_preprocessing: bool = True,
        drop_path_rate: float | None = None,
        grid_size: tuple[int, int] | None = None,
        dtype: Any = None,
        name: str = default_name,
    ) -> CaiT:
        arguments = dict(config)
        if drop_path_rate is not None:
            arguments["drop_path_rate"] = drop_path_rate
        if input_tensor is not None:
            input_shape = tuple(input_tensor.shape[1:])
        input_shape = input_shape or (size, size, 3)
        check_input_shape(input_shape)
        # For images of unknown size, keep the grid of the pretrained weights.
        height, width, channels = input_shape
        if height is None or width is None:
            height = width = size
            grid_size = grid_size or (size // 16, size // 16)
        row = None
        if weights == "imagenet":
            row = nearest_pretrained(variant, (height, width))
            if channels != 3:
                raise ValueError(
                    "The pretrained weights need RGB images. Received: "
                    f'input_shape={input_shape} with weights="imagenet". Use '
                    "3 channels, or weights=None."
                )
        with filled_later(row is not None):
            model = CaiT(
                **arguments,
                include_top=include_top,
                weights=None if row else weights,
                input_tensor=input_tensor,
                input_shape=input_shape,
                pooling=pooling,
                classes=classes,
                classifier_activation=classifier_activation,
                include_preprocessing=include_preprocessing,
                grid_size=grid_size,
                dtype=dtype,
                name=name,
            )
        return load_pretrained(model, row) if row else model

    build.__name__ = build.__qualname__ = f"CaiT_{variant}"
    build.__doc__ = VARIANT_DOCSTRING.format(
        variant=variant, size=size, **config
    )
    return build


CaiT_XXS24 = _variant("XXS24")
CaiT_XXS36 = _variant("XXS36")
CaiT_XS24 = _variant("XS24")
CaiT_XS36 = _variant("XS36")
CaiT_S24 = _variant("S24")
CaiT_S36 = _variant("S36")
CaiT_S48 = _variant("S48")
CaiT_M24 = _variant("M24")
CaiT_M36 = _variant("M36")
CaiT_M48 = _variant("M48")


def init_values_by_depth(depth: int) -> float:
    """Touvron et al., 2021, section 2: deeper models start closer to 0."""
    if depth <= 18:
        return 0.1
    return 1e-5 if depth <= 24 else 1e-6


def _check_pooling(pooling: Any, include_top: bool) -> None:
    if pooling not in ("token", "avg", None):
        raise ValueError(
            'pooling must be "token" (the class token), "avg" (the mean '
            "of the patch tokens) or None (all tokens). "
            f"Received: pooling={pooling!r}."
        )
    if include_top and pooling is None:
        raise ValueError(
            "The classifier needs one vector per image. Received: "
            'pooling=None with include_top=True. Use pooling="token" (or '
            '"avg"), or include_top=False to get all tokens.'
        )
