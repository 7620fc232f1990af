"""What `CaiT` and the baselines share: stem, class attention, head, config."""

from typing import Any

import keras

from keras_cait.blocks import ClassAttentionBlock, SelfAttentionBlock
from keras_cait.conversion import is_state, reference_name
from keras_cait.initializers import kernel_initializer
from keras_cait.layers import (
    ClassToken,
    Container,
    PatchEmbedding,
    PositionEmbedding,
    Shape,
    is_positive_int,
    positive_int,
)
from keras_cait.optimizers import freeze_weights
from keras_cait.preprocessing import IMAGENET_MEAN, IMAGENET_STD


class VisionTransformer(Container, keras.Model):
    """A Functional model that knows the arguments it was built with.

    Args:
        inputs: Keras tensor that the model takes, or several.
        images: Keras tensor of the images: `inputs`, or made of them.
        outputs: Keras tensor.
        policy: dtype policy of the layers.
        name: name of the model.
        arguments: the other arguments of the subclass. They become attributes
            and are saved in the config.
    """

    embed_dim: int
    depth: int
    num_heads: int
    patch_size: int
    mlp_ratio: float
    class_attention_depth: int
    init_values: float | None
    drop_path_rate: float
    include_top: bool
    image_shape: Shape  # the argument input_shape; Keras has that name itself
    pooling: str | None
    classes: int
    classifier_activation: Any
    include_preprocessing: bool
    grid_size: tuple[int, int]

    def __init__(
        self,
        inputs: Any,
        images: Any,
        outputs: Any,
        policy: Any,
        name: str | None,
        **arguments: Any,
    ):
        super().__init__(inputs=inputs, outputs=outputs, name=name)
        self._images = images
        self.image_shape = tuple(
            side and int(side) for side in arguments.pop("input_shape")
        )
        self.grid_size = self.get_layer("position_embedding").grid_size
        for argument, value in arguments.items():
            setattr(self, argument, value)
        self.argument_names = list(arguments)
        self.dtype_policy = policy  # compile() scales the loss by it

    @property
    def self_attention_blocks(self) -> list[SelfAttentionBlock]:
        """The blocks among the patches, from first to last."""
        return [
            layer
            for layer in self.layers
            if isinstance(layer, SelfAttentionBlock)
        ]

    @property
    def class_attention_blocks(self) -> list[ClassAttentionBlock]:
        """The blocks in which the class token reads the patches, in order."""
        return [
            layer
            for layer in self.layers
            if isinstance(layer, ClassAttentionBlock)
        ]

    def make_train_function(self, force: bool = False) -> Any:
        # TensorFlow's; on a TPU, its step is compiled in any case.
        strategy: Any = getattr(self, "distribute_strategy", None)
        kind = type(strategy).__name__
        if (
            self.jit_compile
            and kind.endswith("MirroredStrategy")
            and strategy.num_replicas_in_sync > 1
        ):
            raise ValueError(
                "TensorFlow cannot compile the step of several devices with "
                f"XLA. Received: jit_compile=True under {kind}. Omit "
                "jit_compile, or use python -m training.train, which compiles "
                "the step of each device."
            )
        return super().make_train_function(force)

    def get_config(self) -> dict[str, Any]:
        arguments = {name: getattr(self, name) for name in self.argument_names}
        serialize = keras.saving.serialize_keras_object
        if self._images is not self.input:  # layers before an input_tensor
            before = keras.Model(self.input, self._images, name="before")
            arguments["input_tensor"] = serialize(before)
        return {
            **arguments,
            "classifier_activation": serialize(self.classifier_activation),
            "input_shape": self.image_shape,
            "grid_size": self.grid_size,
            "dtype": serialize(self.dtype_policy),
            "name": self.name,
            "quantized": {
                _kernel_name(layer): serialize(layer.quantization_config)
                for layer in self._flatten_layers()
                if getattr(layer, "quantization_config", None)
            },
            "frozen": [
                reference_name(weight.path)
                for weight in self.weights
                if not (weight.trainable or is_state(weight))
            ],
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: Any = None
    ) -> "VisionTransformer":
        config = {
            key: keras.saving.deserialize_keras_object(value, custom_objects)
            for key, value in config.items()
        }
        if before := config.get("input_tensor"):
            config["input_tensor"] = before.output
        quantization_mode = config.pop("quantization_mode", None)
        quantized = config.pop("quantized", {})
        frozen = config.pop("frozen", ())
        model = cls(**config)
        if quantization_mode is not None:  # files of earlier versions
            model.quantize(quantization_mode)
        for layer in model._flatten_layers():
            if quantization := quantized.get(_kernel_name(layer)):
                layer.quantize(config=quantization)
        freeze_weights(
            model,
            [w for w in model.weights if reference_name(w.path) in frozen],
        )
        return model


def _kernel_name(layer: keras.layers.Layer) -> str:
    return reference_name(f"{layer.path}/kernel")


def embed_patches(
    images: Any,
    embed_dim: int,
    patch_size: int,
    grid_size: tuple[int, int] | None,
    include_preprocessing: bool,
    policy: Any,
) -> Any:
    """Images to patch tokens with positions `(batch, patches, embed_dim)`."""
    if grid_size is None and None in images.shape[1:]:
        grid_size = (224 // patch_size, 224 // patch_size)
    x = images
    if include_preprocessing:
        x = normalization(images.shape[-1])(x)
    x = PatchEmbedding(
        embed_dim, patch_size, dtype=policy, name="patch_embedding"
    )(x)
    return PositionEmbedding(
        grid_size, dtype=policy, name="position_embedding"
    )(x)


def read_patches(
    patches: Any,
    depth: int,
    num_heads: int,
    mlp_ratio: float,
    init_values: float | None,
    policy: Any,
) -> Any:
    """Patch tokens to the class token `(batch, 1, embed_dim)`.

    It goes through `depth` class-attention blocks.
    """
    token = ClassToken(dtype=policy, name="class_token")(patches)
    for i in range(depth):
        token = ClassAttentionBlock(
            num_heads,
            mlp_ratio,
            init_values,
            dtype=policy,
            name=f"class_attention_block_{i}",
        )(token, patches)
    return token


def head(features: Any, classes: int, activation: Any, policy: Any) -> Any:
    """Features `(batch, embed_dim)` to predictions `(batch, classes)`."""
    return keras.layers.Dense(
        classes,
        activation=activation,
        kernel_initializer=kernel_initializer(),
        dtype=policy.variable_dtype,
        name="head",
    )(features)


def normalization(channels: int) -> keras.layers.Layer:
    """A layer from pixels in 0...255 to the inputs of the patch embedding."""
    if channels == 3:
        scale = [1 / (255 * std) for std in IMAGENET_STD]
        offset = [
            -mean / std
            for mean, std in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)
        ]
    else:
        scale, offset = [1 / 127.5], [-1.0]
    # Of rank 3: Keras would turn a list of channels to its image_data_format.
    return keras.layers.Rescaling(
        [[scale]], [[offset]], dtype="float32", name="normalization"
    )


def mean_of_patches(patches: Any, policy: Any) -> Any:
    """Patch tokens `(batch, patches, embed_dim)` to their mean."""
    return keras.layers.GlobalAveragePooling1D(
        data_format="channels_last", dtype=policy.variable_dtype, name="pooling"
    )(patches)


def check_sizes(**sizes: int) -> tuple[int, ...]:
    """The numbers; raises ValueError unless each is an integer > 0."""
    return tuple(positive_int(name, size) for name, size in sizes.items())


def check_input_shape(shape: Any) -> None:
    """Raises ValueError if a shape is not that of images."""
    if (
        not isinstance(shape, list | tuple)
        or len(shape) != 3
        or shape[-1] is None
        or not all(s is None or is_positive_int(s) for s in shape)
    ):
        raise ValueError(
            "input_shape must be (height, width, channels), where height and "
            f"width may be None. Received: input_shape={shape}. "
            "For example (224, 224, 3) or (None, None, 3)."
        )
