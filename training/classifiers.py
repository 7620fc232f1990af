"""Trained classifiers of any kind of file, as one kind of function."""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import keras
import tensorflow as tf

import keras_cait
from keras_cait.weights import load_published


@dataclass(frozen=True)
class Classifier:
    """A function of images, and what is to be known of it.

    Attributes:
        predict: function of a float32 tensor `(batch, height, width, 3)` of
            RGB in 0...255 to float32 probabilities `(batch, classes)`.
        size: pair of ints, height and width of the images in pixels.
        identity: str by which the very weights are recognised.
    """

    predict: Callable
    size: tuple
    identity: str


def published(checkpoint, precision="float32"):
    """A published model with its weights.

    Args:
        checkpoint: `keras_cait.weights.Checkpoint`.
        precision: str. Dtype policy.

    Returns:
        `Classifier`.

    Raises:
        OSError: the weights are neither in the cache nor reachable.
    """
    size = (checkpoint.image_size, checkpoint.image_size)
    build = getattr(keras_cait, f"CaiT_{checkpoint.variant}")
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        model = build(weights=None, input_shape=(*size, 3))
    finally:
        keras.config.set_dtype_policy(before)
    load_published(model, checkpoint)
    return _of_keras(model, checkpoint.repository)


def load_classifier(path, precision="float32", raw=False):
    """A classifier from a file or folder.

    Args:
        path: path of a `.keras` file; a `.safetensors` file of a CaiT; a
            `.tflite` file with an input of RGB in 0...255 and an output
            `probabilities`; the folder of a training run; or that of a
            SavedModel with a signature `pixels` that gives `probabilities`,
            as `python -m export` writes both.
        precision: str. Dtype policy; exported files have their own.
        raw: bool. Of a run, take the weights of its last step instead of the
            averaged ones.

    Returns:
        `Classifier`.

    Raises:
        ValueError: the path is none of these.
    """
    path = Path(path)
    if path.suffix == ".tflite" and not raw:
        return _litert(path)
    if tf.saved_model.contains_saved_model(str(path)) and not raw:
        return _saved_model(path)
    model = load_keras_model(path, precision, raw)
    run = path / "model.keras"
    return _of_keras(model, _sha256(run if run.exists() else path))


def load_keras_model(path, precision="float32", raw=False):
    """A Keras model from a file or the folder of a training run.

    Args:
        path: path of a `.keras` file, a `.safetensors` file of a CaiT, or the
            folder of a training run.
        precision: str. Dtype policy.
        raw: bool. Of a run, take the weights of its last step instead of the
            averaged ones.

    Returns:
        `keras.Model`.

    Raises:
        ValueError: the path is none of these.
    """
    path = Path(path)
    if (path / "model.keras").exists():
        return _run(path, precision, raw)
    if raw:
        raise ValueError(
            f"Only a training run keeps its raw weights. Received: {path}."
        )
    if path.suffix == ".keras":
        return _in_precision(keras.models.load_model(path), precision)
    if path.suffix == ".safetensors":
        return _safetensors(path, precision)
    raise ValueError(
        f"{path} is no .keras, .safetensors or .tflite file, and no folder of "
        "a training run or a SavedModel. Published weights are asked for by "
        "the name of their variant."
    )


def _of_keras(model, identity):
    predict = tf.function(
        lambda images: tf.cast(model(images, training=False), tf.float32)
    )
    return Classifier(predict, model.input.shape[1:3], identity)


def _in_precision(model, precision):
    """The same model, computing in another dtype."""
    if model.dtype_policy.name == precision:
        return model
    changed = type(model).from_config(
        {**model.get_config(), "dtype": precision}
    )
    changed.set_weights(model.get_weights())
    return changed


def _run(folder, precision, raw):
    model = keras.models.load_model(folder / "model.keras")
    if raw:
        # Not by TensorFlow's list of them, which has absolute paths.
        last = max(
            (folder / "checkpoints").glob("*.index"),
            key=lambda file: int(file.stem.rpartition("-")[2]),
            default=None,
        )
        if last is None:
            raise ValueError(
                f"{folder} has no checkpoints, which hold the raw weights. "
                "Evaluate its averaged ones."
            )
        checkpoint = tf.train.Checkpoint(model=model)
        status = checkpoint.read(str(last.with_suffix("")))
        status.assert_existing_objects_matched().expect_partial()
    return _in_precision(model, precision)


def _safetensors(path, precision):
    """A CaiT whose sizes are those of the tensors in a file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            notes = file.metadata() or {}
            shapes = {
                name: file.get_slice(name).get_shape()
                for name in list(file.keys())
            }
    except SafetensorError as error:
        raise ValueError(f"{path} is no .safetensors file: {error}") from error
    if "blocks.0.attn.proj_l.weight" not in shapes:
        raise ValueError(f"{path} does not hold the tensors of a CaiT.")

    def count(stage):
        return sum(
            name.startswith(f"{stage}.") and name.endswith(".gamma_1")
            for name in shapes
        )

    *_, patch_size = shapes["patch_embed.proj.weight"]
    _, patches, embed_dim = shapes["pos_embed"]
    grid = (math.isqrt(patches),) * 2
    if "grid_size" in notes:
        grid = tuple(map(int, notes["grid_size"].split("x")))
    return keras_cait.CaiT(
        embed_dim,
        count("blocks"),
        shapes["blocks.0.attn.proj_l.weight"][0],
        patch_size,
        shapes["blocks.0.mlp.fc1.weight"][0] / embed_dim,
        count("blocks_token_only"),
        input_shape=(grid[0] * patch_size, grid[1] * patch_size, 3),
        classes=shapes["head.weight"][0],
        weights=path,
        dtype=precision,
    )


def _saved_model(path):
    loaded = tf.saved_model.load(str(path))
    if "pixels" not in loaded.signatures:
        raise ValueError(
            f"The SavedModel {path} has no signature pixels, but "
            f"{sorted(loaded.signatures)}. python -m export writes it."
        )
    signature = loaded.signatures["pixels"]
    ((name, spec),) = signature.structured_input_signature[1].items()

    def predict(images, loaded=loaded):  # which must outlive its signature
        images = tf.cast(images, spec.dtype)
        return signature(**{name: images})["probabilities"]

    return Classifier(predict, tuple(spec.shape[1:3]), _sha256(path))


def _litert(path):
    from ai_edge_litert.interpreter import Interpreter

    try:
        interpreter = Interpreter(model_path=str(path), num_threads=2)
    except ValueError as error:
        raise ValueError(f"{path} is no .tflite file: {error}") from error
    runner = interpreter.get_signature_runner("serving_default")
    ((name, details),) = runner.get_input_details().items()
    dtype = details["dtype"]
    batch, *answers = details["shape"][0], *runner.get_output_details()
    if batch != 1 or answers != ["probabilities"]:
        raise ValueError(
            "Files of one picture at a time that answer its probabilities "
            f"are evaluated. {path} takes {batch} and answers "
            f"{', '.join(answers)}. Export the model without --batch-size "
            "and --logits."
        )

    def predict(images):
        return tf.concat(
            [
                runner(**{name: image[None].astype(dtype)})["probabilities"]
                for image in images.numpy()
            ],
            axis=0,
        )

    return Classifier(
        predict, tuple(map(int, details["shape"][1:3])), _sha256(path)
    )


def _sha256(path):
    """Of a file, or of all files of a folder with their names."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    files = {
        str(file.relative_to(path)): _sha256(file)
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }
    return hashlib.sha256(json.dumps(files).encode()).hexdigest()
