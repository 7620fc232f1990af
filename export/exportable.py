"""Which models can be exported, and loading them."""

from pathlib import Path

import keras

import keras_cait
from keras_cait.labels import find_labels, load_labels, read_labels
from keras_cait.loading import load_model


def load_exportable(
    source: str | Path,
    variant: str | None = None,
    image_size: int | None = None,
    labels: str | Path | None = None,
) -> tuple[keras_cait.CaiT, list[str]]:
    """Loads a model to export and the names of its classes.

    Args:
        source: published name, run folder, `.keras` file or weights file.
        variant: architecture of a `.weights.h5` file.
        image_size: height and width of the images in pixels; `None` is the
            source's own.
        labels: text file with one label per line; `None` takes the labels
            beside the model, otherwise ImageNet's.

    Returns:
        The model, and its labels by class.

    Raises:
        ValueError: the model cannot be loaded or exported, or has another
            number of classes than there are labels.
        OSError: published weights are neither in the cache nor reachable.

    Example:
    >>> model, labels = load_exportable("S24")  # doctest: +SKIP
    """
    names = read_labels(labels) if labels else find_labels(source)
    model = load_model(
        source,
        variant=variant,
        image_size=image_size,
        classes=len(names) if names else None,
    )
    model = check_exportable(model)
    return model, load_labels(source, labels, model.classes)


def check_exportable(model: keras.Model) -> keras_cait.CaiT:
    """Checks that a model can be exported.

    Args:
        model: any Keras model.

    Returns:
        The model.

    Raises:
        ValueError: the model is not a float `CaiT` with a head of softmax,
            sigmoid or logits, preprocessing and `pooling="token"`, for RGB
            images of a fixed size; or it has LoRA, or layers before the images.

    Example:
    >>> model = CaiT(48, depth=1, num_heads=4, input_shape=(64, 96, 3))
    >>> check_exportable(model) is model
    True
    """
    if not isinstance(model, keras_cait.CaiT):
        raise ValueError(
            f"Only CaiT models can be exported. Got a {type(model).__name__}. "
            "Export it with its own method, model.export."
        )
    config = model.get_config()
    if config["quantized"]:
        raise ValueError(
            "Got a model after quantize(). Export the float model it was made "
            "from, and choose a quantization scheme for the export."
        )
    if any(weight.path.endswith("/lora_kernel_a") for weight in model.weights):
        raise ValueError(
            "Got a model with LoRA. Save and load it before the export: "
            "keras.saving.load_model merges LoRA into the kernels."
        )
    if "input_tensor" in config:
        raise ValueError(
            "Got a model with layers before its images (input_tensor), which "
            "an export leaves out. If it predicts the same without them, as "
            "after augmentation, export its weights: keras_cait.save_weights."
        )
    if not (
        model.include_top
        and model.include_preprocessing
        and model.pooling == "token"
    ):
        raise ValueError(
            "Only classifiers of images in 0...255 can be exported. Got "
            f"include_top={model.include_top}, "
            f"include_preprocessing={model.include_preprocessing} and "
            f"pooling={model.pooling!r}. Rebuild the model with True, True and "
            '"token", and load its weights.'
        )
    is_sigmoid(model)
    image_size(model)
    return model


def is_sigmoid(model: keras_cait.CaiT) -> bool:
    """Whether a model's classes are independent, and do not exclude another.

    Args:
        model: `CaiT` with a head.

    Raises:
        ValueError: the head has another activation than softmax, sigmoid or
            none, or no activation for a single class.

    Example:
    >>> model = CaiT(
    ...     48, 1, 4, input_shape=(64, 96, 3), classifier_activation="sigmoid"
    ... )
    >>> is_sigmoid(model)
    True
    """
    activation = model.get_layer("head").activation
    if activation is keras.activations.sigmoid:
        return True
    is_logits = activation is keras.activations.linear and model.classes > 1
    if not is_logits and activation is not keras.activations.softmax:
        raise ValueError(
            "Only heads of softmax, sigmoid or, for several classes, logits "
            "can be exported. Got "
            f"classifier_activation={model.classifier_activation!r} and "
            f"classes={model.classes}. Rebuild the model with one of these, "
            "and load its weights."
        )
    return False


def image_size(model: keras_cait.CaiT) -> tuple[int, int]:
    """Height and width of a model's images in pixels.

    Args:
        model: `CaiT`.

    Raises:
        ValueError: the model does not take RGB images of a fixed size.

    Example:
    >>> image_size(CaiT(48, 1, 4, input_shape=(64, 96, 3)))
    (64, 96)
    """
    height, width, channels = model.image_shape
    if channels != 3:
        raise ValueError(
            "Only models of RGB images can be exported. Got "
            f"input_shape={model.image_shape}. Train one with "
            "input_shape=(224, 224, 3)."
        )
    if height is None or width is None:
        size = model.grid_size[0] * model.patch_size
        raise ValueError(
            "Only models of images of a fixed size can be exported. Got "
            f"input_shape={model.image_shape}. Set the size, such as "
            f"--image-size {size}."
        )
    return height, width


def patch_grid(model: keras_cait.CaiT) -> tuple[int, int]:
    """Rows and columns of patches in a model's images.

    Args:
        model: `CaiT`.

    Raises:
        ValueError: as in `image_size`.

    Example:
    >>> patch_grid(CaiT(48, 1, 4, input_shape=(64, 96, 3)))
    (4, 6)
    """
    height, width = image_size(model)
    return height // model.patch_size, width // model.patch_size
