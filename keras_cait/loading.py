"""The one loader of trained models: every `--model` and every program.

A *source* is a published name (`"S24"`, or `"S24-384"` at another size), the
folder of a training run, a `.keras` file, a weights file (`.safetensors`,
`.pth`, `.weights.h5`), a SavedModel or a `.tflite` file.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
from keras import ops

from keras_cait import models
from keras_cait.conversion import is_finite
from keras_cait.files import read_json, sha256
from keras_cait.initializers import filled_later
from keras_cait.litert import LiteRTModel, check_file
from keras_cait.models import VARIANTS, CaiT
from keras_cait.pretrained import (
    PRETRAINED,
    PretrainedWeights,
    nearest_pretrained,
)
from keras_cait.transformer import VisionTransformer
from keras_cait.weights import (
    check_declared,
    explaining,
    fill,
    load_pretrained,
    load_weights,
    read_keras,
    read_tensors,
)

WEIGHTS_SUFFIXES = (".safetensors", ".pth", ".weights.h5")


@dataclass(frozen=True)
class Classifier:
    """A model of any kind as a function from images to probabilities.

    Attributes:
        predict: function of a float32 array or tensor `(batch, height, width,
            3)`, RGB in 0...255, to float32 probabilities `(batch, classes)`.
        image_size: height and width of the images in pixels.
        classes: number of classes.
        model: the Keras model; `None` if the source is an exported file.
    """

    predict: Callable[[Any], Any]
    image_size: tuple[int, int]
    classes: int
    model: keras.Model | None = None


def published(source: str | Path) -> PretrainedWeights | None:
    """The published weights that a name stands for.

    Args:
        source: as in `load_model`.

    Returns:
        The row of the published weights; `None` if the source is a path.

    Raises:
        ValueError: the variant has no published weights, or none of that size.

    Example:
    >>> published("S24-384").repository
    'timm/cait_s24_384.fb_dist_in1k'
    """
    match = re.fullmatch(r"([A-Z]+\d+)(?:-(\d+))?", str(source))
    if not match or match[1] not in VARIANTS:
        return None
    variant, size = match[1], match[2] and int(match[2])
    default = VARIANTS[variant].image_size
    row = nearest_pretrained(variant, (size or default, size or default))
    if size and row.image_size != size:
        names = (f"{name}-{size}" for name, size in PRETRAINED)
        raise ValueError(
            f"No published weights are named {source}. Choose one of "
            f"{', '.join(names)}, and another input size with --image-size."
        )
    return row


def load_model(
    source: str | Path,
    *,
    variant: str | None = None,
    image_size: int | None = None,
    classes: int | None = None,
    precision: str | None = None,
) -> keras.Model:
    """Loads a Keras model with its weights.

    Its images are RGB in 0...255: a `CaiT` without preprocessing gets it,
    unless it has layers before it (`input_tensor`), which then normalize.

    Args:
        source: published name, run folder, `.keras` file or weights file.
        variant: architecture of a weights file that does not record it
            (`.weights.h5`), a key of `VARIANTS`.
        image_size: height and width of the model's input in pixels, to which
            the position embeddings are resampled; `None` is the source's own.
        classes: number of classes of a `.weights.h5` file; `None` is 1000.
        precision: dtype policy; `None` is the source's own, or Keras' global
            one. Models other than ours in mixed precision change to
            `"float32"` only.

    Raises:
        ValueError: the source is none of these, damaged, or does not fit the
            other arguments; the message names it.
        OSError: published weights are neither in the cache nor reachable.

    Example:
    >>> model = CaiT(24, 2, 2, patch_size=8, input_shape=(32, 32, 3))
    >>> model.save("small.keras")
    >>> load_model("small.keras", image_size=48).input.shape
    (None, 48, 48, 3)
    """
    if variant is not None and variant not in VARIANTS:
        raise ValueError(
            f"There is no variant {variant!r}. Choose one of "
            f"{', '.join(VARIANTS)}."
        )
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size must be positive. Got {image_size}.")
    row = published(source)
    path = Path() if row else existing(source)
    if variant and (row or path.suffix == ".keras"):
        raise ValueError(
            f"{str(source)!r} has an architecture of its own. Omit --variant."
        )
    if row:
        size = image_size or row.image_size
        with filled_later():
            model = build(row.variant, size, precision=precision)
        return load_pretrained(model, row)
    if path.name.endswith(".weights.h5"):
        model = _with_variant(path, variant, image_size, classes, precision)
    elif path.suffix in (".safetensors", ".pth"):
        model = _inferred(path, image_size, precision)
    elif path.suffix == ".keras":
        model = _keras_file(path, image_size, precision)
        _check_finite(model, path)
    else:
        raise ValueError(
            f"{str(source)!r} is not a published name (S24, S24-384), run "
            "folder, .keras file or weights file "
            f"({', '.join(WEIGHTS_SUFFIXES)})."
        )
    return model


def load_classifier(
    source: str | Path,
    *,
    variant: str | None = None,
    image_size: int | None = None,
    classes: int | None = None,
    precision: str | None = None,
    threads: int | None = None,
) -> Classifier:
    """Loads a model of any kind as a function from images to probabilities.

    Args:
        source: as in `load_model`; also a SavedModel or the folder of a
            served model (its newest version), or a `.tflite` file.
        variant, image_size, classes, precision: as in `load_model`; exported
            files have their own.
        threads: CPU threads of a `.tflite` file; `None` is one for each core.

    Raises:
        ValueError: as in `load_model`.
        OSError: as in `load_model`.
        ImportError: the source is a `.tflite` file, and LiteRT is missing.

    Example:
    >>> model = CaiT(24, 2, 2, patch_size=8, input_shape=(32, 32, 3))
    >>> model.save("small.keras")
    >>> load_classifier("small.keras").image_size
    (32, 32)
    """
    if published(source) is None:
        path = existing(source)
        exported = saved_model_folder(path)
        if exported or path.suffix == ".tflite":
            if image_size or precision or variant:
                raise ValueError(
                    f"{str(source)!r} is an exported model, whose image size "
                    "and precision are fixed. Omit --image-size, --precision "
                    "and --variant."
                )
            return (
                _saved_model(exported) if exported else _litert(path, threads)
            )
    model = load_model(
        source,
        variant=variant,
        image_size=image_size,
        classes=classes,
        precision=precision,
    )
    return classifier(model)


def identity(source: str | Path) -> str:
    """SHA-256 of a model's file or folder, or the repository of published ones.

    Args:
        source: as in `load_classifier`.

    Example:
    >>> identity("S24")
    'timm/cait_s24_224.fb_dist_in1k'
    """
    row = published(source)
    if row:
        return row.repository
    path = existing(source)
    return sha256(saved_model_folder(path) or path)


def classifier(model: keras.Model) -> Classifier:
    """A Keras model for RGB in 0...255 as a `Classifier`.

    Raises:
        ValueError: the model is not a classifier of RGB images of one size.

    Example:
    >>> model = CaiT(24, 2, 2, patch_size=8, input_shape=(32, 32, 3))
    >>> classifier(model).classes
    1000
    """
    _check_classifier(model)
    _, height, width, _ = model.inputs[0].shape
    classes = int(model.outputs[0].shape[-1])
    last: Any = model
    while isinstance(last, keras.Model):  # its layers lack keras.ops
        last = last.outputs[0]._keras_history.operation
    activation = getattr(last, "activation", None)
    is_logits = activation is keras.activations.linear and classes > 1

    def predict(images: Any) -> Any:
        outputs = ops.cast(model(images, training=False), "float32")
        return ops.softmax(outputs) if is_logits else outputs

    return Classifier(predict, (height, width), classes, model)


def existing(source: str | Path) -> Path:
    """The file or folder of a source; of a run folder its `model.keras`.

    Raises:
        ValueError: there is none, or it is an unfinished run.

    Example:
    >>> existing("nowhere")
    Traceback (most recent call last):
    ValueError: There is no model 'nowhere'. Give a published name (S24, \
S24-384) or the path of a run folder or file.
    """
    path = Path(source)
    if not path.exists():
        raise ValueError(
            f"There is no model {str(source)!r}. Give a published name (S24, "
            "S24-384) or the path of a run folder or file."
        )
    if not (path.is_file() or path.is_dir()):  # a pipe would wait for ever
        raise ValueError(f"{str(source)!r} is neither a file nor a folder.")
    if (path / "model.keras").is_file():
        return path / "model.keras"
    if path.is_dir() and not saved_model_folder(path):
        reason = "neither a finished training run nor a SavedModel"
        if (path / "recipe.json").is_file():
            reason = "an unfinished training run: resume it first"
        if (path / "fold-0").is_dir():
            reason = "a cross-validation: give one of its folds, such as fold-0"
        raise ValueError(f"The folder {str(source)!r} is {reason}.")
    return path


def saved_model_folder(path: str | Path) -> Path | None:
    """The folder of a SavedModel: the path itself, or its newest version.

    Args:
        path: a folder, or anything else.

    Returns:
        `None` if there is no SavedModel.

    Example:
    >>> saved_model_folder("photos") is None
    True
    """
    path = Path(path)
    if (path / "saved_model.pb").is_file():
        return path
    return next(reversed(existing_versions(path).values()), None)


def existing_versions(folder: Path) -> dict[int, Path]:
    """The versions in the folder of a served model, oldest first.

    The server takes the folder `007` as version 7, too.

    Example:
    >>> existing_versions(Path("photos"))
    {}
    """
    folders = (file.parent for file in folder.glob("*/saved_model.pb"))
    found = {int(one.name): one for one in folders if one.name.isdecimal()}
    return dict(sorted(found.items()))


def build(
    variant: str,
    image_size: int | None = None,
    classes: int = 1000,
    precision: str | None = None,
) -> CaiT:
    """A variant with random weights.

    Example:
    >>> build("XXS24", 32, classes=5).output_shape
    (None, 5)
    """
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision or before)
    try:
        return getattr(models, f"CaiT_{variant}")(
            weights=None,
            input_shape=image_size and (image_size, image_size, 3),
            classes=classes,
        )
    finally:
        keras.config.set_dtype_policy(before)


def _keras_file(
    path: Path, image_size: int | None, precision: str | None
) -> keras.Model:
    try:
        model = read_keras(path)
    except ValueError as error:
        raise ValueError(
            f"Cannot load a Keras model from {str(path)!r}: {error}"
        ) from None
    if not hasattr(model, "inputs"):  # a subclass, or a Sequential not built
        raise ValueError(
            f"{str(path)!r} holds a {type(model).__name__} without an input of "
            "known shape. Start the model with keras.Input, and save it again."
        )
    is_ours = isinstance(model, VisionTransformer)
    if precision == "float32" and not is_ours:  # its layers have policies
        for layer in model._flatten_layers():
            if layer.dtype_policy.name in ("mixed_bfloat16", "mixed_float16"):
                layer.dtype_policy = precision
    own_size = model.inputs[0].shape[1:3]
    size = (image_size, image_size) if image_size else own_size
    is_same = size == own_size and precision in (None, model.dtype_policy.name)
    config = model.get_config() if is_ours else {}
    has_own_layers = "input_tensor" in config
    if is_same and (
        has_own_layers or config.get("include_preprocessing", True)
    ):
        return model
    if not is_ours:
        raise ValueError(
            f"{str(path)!r} holds a {type(model).__name__}, whose image size "
            "and precision are fixed. Omit --image-size and --precision."
        )
    if not has_own_layers:
        config["include_preprocessing"] = True
    if precision:
        config["dtype"] = precision
    if size != own_size:
        if has_own_layers:
            raise ValueError(
                f"{str(path)!r} holds a model with layers before the CaiT, "
                "whose image size is fixed. Omit --image-size."
            )
        channels = model.inputs[0].shape[-1]
        config |= {"input_shape": (*size, channels), "grid_size": None}
    with filled_later():
        changed = type(model).from_config(config)
    if changed.inputs[0].shape == model.inputs[0].shape:
        changed.set_weights(model.get_weights())
        return changed
    return load_weights(changed, path)


def _check_classifier(model: keras.Model) -> None:
    if (
        not getattr(model, "include_top", True)
        or [len(tensor.shape) for tensor in model.inputs] != [4]
        or [len(tensor.shape) for tensor in model.outputs] != [2]
    ):
        raise ValueError(
            f"{model.name!r} is not an image classifier. Expected a model with "
            "a head (include_top=True)."
        )
    _, *size, channels = model.inputs[0].shape
    if None in size or channels != 3:
        raise ValueError(
            f"{model.name!r} takes images of shape {(*size, channels)}. "
            "Expected RGB images of one size, such as (224, 224, 3); "
            "--image-size sets it."
        )


def _check_finite(model: keras.Model, path: Path) -> None:
    for variable in model.weights:
        if not is_finite(ops.convert_to_numpy(variable)):
            raise ValueError(
                f"{str(path)!r} is damaged, or its training diverged: the "
                f"weight {variable.path} is not finite."
            )


def _with_variant(
    path: Path,
    variant: str | None,
    image_size: int | None,
    classes: int | None,
    precision: str | None,
) -> CaiT:
    if variant is None:
        raise ValueError(
            f"{str(path)!r} does not record its architecture. Add it, such as "
            "--variant S24."
        )
    with filled_later():
        model = build(variant, image_size, classes or 1000, precision)
    return load_weights(model, path)


def _inferred(
    path: Path, image_size: int | None, precision: str | None
) -> CaiT:
    """A CaiT whose architecture is that of the tensors in a file."""
    try:
        tensors, grid = read_tensors(path)
    except ValueError as error:
        raise ValueError(f"Cannot load {str(path)!r}: {error}") from None
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}

    def count(stage: str) -> int:
        return sum(
            name.startswith(f"{stage}.") and name.endswith(".gamma_1")
            for name in shapes
        )

    try:
        num_heads, _ = shapes["blocks.0.attn.proj_l.weight"]
        *_, patch_size = shapes["patch_embed.proj.weight"]
        _, patches, embed_dim = shapes["pos_embed"]
        hidden_dim, _ = shapes["blocks.0.mlp.fc1.weight"]
        classes, _ = shapes["head.weight"]
    except (KeyError, ValueError):
        raise ValueError(
            f"{str(path)!r} does not hold the tensors of a CaiT classifier."
        ) from None
    rows, columns = grid or (math.isqrt(patches),) * 2
    class_attention_depth = count("blocks_token_only")
    config: dict[str, Any] = {
        "embed_dim": embed_dim,
        "depth": count("blocks"),
        "num_heads": num_heads,
        "patch_size": patch_size,
        "mlp_ratio": hidden_dim / (embed_dim or 1),
        "class_attention_depth": class_attention_depth or 2,
        "input_shape": (rows * patch_size, columns * patch_size, 3),
        "pooling": "token" if class_attention_depth else "avg",
        "classes": classes,
    }
    try:
        check_declared(config, path.stat().st_size)
        if image_size:
            config["input_shape"] = (image_size, image_size, 3)
        with filled_later():
            model = CaiT(**config, dtype=precision)
    except ValueError as error:  # sizes that contradict each other
        raise ValueError(f"Cannot load {str(path)!r}: {error}") from None
    with explaining(model, path):
        fill(model, tensors, grid)
    return model


def verified_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a SavedModel, whose files are checked against it.

    Args:
        folder: that of the SavedModel.

    Raises:
        ValueError: a file is missing or damaged; the message names it.
    """
    try:
        manifest = read_json(folder / "manifest.json", ["image_size"])
        for name, digest in manifest.get("sha256", {}).items():
            # A name outside the folder could be the whole disk.
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise ValueError(f"its manifest names {name!r}, outside it")
            if sha256(folder / name) != digest:
                raise ValueError(f"{name} is damaged: its SHA-256 is wrong")
    except Exception as error:  # a manifest can hold anything
        raise _foreign(folder, error) from None
    return manifest


def _foreign(folder: Path, error: Exception) -> ValueError:
    reason = str(error).strip().partition("\n")[0]
    return ValueError(
        f"Cannot load {str(folder)!r} as python -m export saved-model writes "
        f"it: {reason}"
    )


def _saved_model(folder: Path) -> Classifier:
    manifest = verified_manifest(folder)
    try:
        if "pixels" not in manifest.get("signatures", ["pixels"]):
            raise ValueError(
                "it lacks the signature pixels. Add pixels to the --signatures "
                "of its export"
            )
        layer = keras.layers.TFSMLayer(
            str(folder), call_endpoint="pixels", trainable=False
        )
        outputs = layer.call_endpoint_fn.structured_outputs
        classes = int(outputs["probabilities"].shape[-1])
        height, width = map(int, manifest["image_size"])
    except NotImplementedError:
        raise ValueError(
            f"{str(folder)!r} is a SavedModel, which only runs on Keras' "
            "TensorFlow backend: KERAS_BACKEND=tensorflow."
        ) from None
    except Exception as error:  # of many kinds
        raise _foreign(folder, error) from None

    def predict(images: Any) -> Any:
        return layer(ops.cast(images, "uint8"))["probabilities"]

    return Classifier(predict, (height, width), classes)


def _litert(path: Path, threads: int | None) -> Classifier:
    check_file(path)
    model = LiteRTModel(path, threads)
    return Classifier(model, model.image_size, model.classes)
