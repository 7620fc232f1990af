"""Models of any kind as functions of encoded images."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

import keras_cait
from export.exportable import image_size
from keras_cait.labels import embedded_labels, find_labels
from keras_cait.litert import LiteRTModel
from keras_cait.loading import (
    Classifier,
    classifier,
    load_classifier,
    saved_model_folder,
    verified_manifest,
)
from keras_cait.preprocessing import load_image, resize_and_crop

# A function of encoded images to probabilities `(images, classes)`.
Predict = Callable[[Sequence[bytes]], np.ndarray]

# A function of uint8 pixels `(images, height, width, 3)` to `probabilities`,
# and `embedding` if it is asked for.
PredictPixels = Callable[[np.ndarray], dict[str, np.ndarray]]

# A SavedModel only returns its top classes; the others get this score.
UNKNOWN = -1.0


def keras_predictor(model: keras_cait.CaiT) -> Predict:
    """The Keras model as a function of encoded images."""
    predict = tf.function(
        classifier(model).predict,
        input_signature=[tf.TensorSpec(model.input.shape, tf.float32)],
    )
    size = image_size(model)
    return lambda encoded: predict(to_pixels(encoded, size)).numpy()


def load_predictor(
    path: Path, labels: Sequence[str], size: tuple[int, int]
) -> Predict:
    """An exported model as a function of encoded images.

    Args:
        path: the `.tflite` file, or the folder of the SavedModel.
        labels, size: of the model it was made from.
    """
    if path.suffix == ".tflite":
        return litert_predictor(path, labels, size)
    return saved_model_predictor(path, labels, size)


def saved_model_predictor(
    path: Path, labels: Sequence[str], size: tuple[int, int]
) -> Predict:
    """Calls `serving_default`, and orders its scores by class.

    A version without it has `pixels`, which needs decoded images.
    """
    check_same_size(path, verified_manifest(path)["image_size"], size)
    check_same_labels(path, find_labels(path), labels)
    signatures = tf.saved_model.load(str(path)).signatures
    if "serving_default" not in signatures:
        return pixels_predictor(path, signatures, size)
    signature = signatures["serving_default"]
    index = {label.encode(): i for i, label in enumerate(labels)}

    def predict(encoded):
        outputs = signature(image_bytes=tf.constant(encoded))
        errors = outputs.get("error", tf.constant([""])).numpy()
        if any(errors):
            raise ValueError(max(errors).decode())
        classes = np.vectorize(index.__getitem__)(outputs["classes"].numpy())
        scores = np.full((len(encoded), len(labels)), UNKNOWN, np.float32)
        np.put_along_axis(scores, classes, outputs["scores"].numpy(), axis=1)
        return scores

    return predict


def pixels_predictor(
    path: Path, signatures: Mapping[str, Any], size: tuple[int, int]
) -> Predict:
    """Decodes images, and calls `pixels`."""
    if "pixels" not in signatures:
        raise ValueError(
            f"{str(path)!r} has neither serving_default nor pixels. Export it "
            "with one of these signatures."
        )
    signature = signatures["pixels"]

    def predict(encoded):
        pixels = to_pixels(encoded, size).astype("uint8")
        return signature(images=tf.constant(pixels))["probabilities"].numpy()

    return predict


def litert_predictor(
    path: str | Path, labels: Sequence[str], size: tuple[int, int]
) -> Predict:
    """Decodes images, and runs a `.tflite` file on them."""
    model = LiteRTModel(path)
    check_same_size(path, model.image_size, size)
    if model.classes != len(labels):
        raise ValueError(
            f"{str(path)!r} has {model.classes} classes, but the model has "
            f"{len(labels)}. Give the model it was made from."
        )
    own = embedded_labels(path)
    if own is not None:  # files of other converters have none
        check_same_labels(path, own, labels)
    return lambda encoded: model(to_pixels(encoded, size))


def check_same_size(
    path: str | Path, own: Sequence[int], size: Sequence[int]
) -> None:
    """Raises ValueError if a file's images are not of the model's size."""
    if [*own] != [*size]:
        raise ValueError(
            f"{str(path)!r} takes images of {own[0]} x {own[1]} pixels, but "
            f"the model takes {size[0]} x {size[1]}. Give the model it was "
            "made from, and the --image-size of its export."
        )


def check_same_labels(
    path: str | Path, own: Sequence[str] | None, labels: Sequence[str]
) -> None:
    """Raises ValueError if a file's own labels are not those of the model."""
    if own != list(labels):
        raise ValueError(
            f"{str(path)!r} has other labels than the model. Give the labels "
            "it was exported with: --labels FILE."
        )


def to_pixels(
    encoded: Sequence[bytes], image_size: tuple[int, int]
) -> np.ndarray:
    """Encoded images as a float32 batch `(images, height, width, 3)`."""
    images = [resize_and_crop(load_image(one), image_size) for one in encoded]
    return np.stack(images).astype("float32")


def load_pixel_predictor(
    source: str,
    variant: str | None = None,
    image_size: int | None = None,
    classes: int | None = None,
    embedding: bool = False,
    threads: int | None = None,
) -> PredictPixels:
    """A model of any kind as a function of pixels.

    Args:
        source, variant, image_size, classes: as in `load_classifier`.
        embedding: whether to compute embeddings, which takes another run of
            the model.
        threads: CPU threads; `None` is one for each core.

    Raises:
        ValueError: as in `load_classifier`; or the model has no embedding.
    """
    if threads:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    loaded = load_classifier(
        source,
        variant=variant,
        image_size=image_size,
        classes=classes,
        threads=threads,
    )
    classify: Callable = loaded.predict
    if not isinstance(classify, LiteRTModel):
        classify = tf.function(classify)
    embed = embedder(source, loaded) if embedding else None

    def predict(pixels):
        images = pixels.astype("float32")
        found = {"probabilities": np.asarray(classify(images))}
        return found | {"embedding": embed(images)} if embed else found

    return predict


def embedder(
    source: str, loaded: Classifier
) -> Callable[[np.ndarray], np.ndarray]:
    """The embedding of a model as a function of float32 pixels.

    It is the class token after the last norm, in float32.

    Args:
        source: where the model was loaded from.
        loaded: the model.

    Raises:
        ValueError: the model has no embedding.
    """
    model = loaded.model
    if isinstance(model, keras_cait.CaiT):
        head = model.get_layer("head")
        embed = tf.function(keras.Model(model.input, head.input))
        # Parquet has no bfloat16.
        return lambda images: tf.cast(embed(images), tf.float32).numpy()
    if isinstance(loaded.predict, LiteRTModel):
        return _litert_embedder(loaded.predict)
    folder = saved_model_folder(source)
    if folder is None:
        raise ValueError(
            f"{source!r} has no embedding. Omit --embedding, or give a CaiT."
        )
    exported = tf.saved_model.load(str(folder))
    if "embedding" not in exported.signatures:
        raise ValueError(_no_embedding(folder, "pixels embedding"))

    @tf.function
    def embed_encoded(images):
        # The signature takes files. A PNG of the right size keeps the pixels.
        encoded = tf.map_fn(
            partial(tf.io.encode_png, compression=0),
            tf.cast(images, tf.uint8),
            fn_output_signature=tf.string,
        )
        signature = exported.signatures["embedding"]
        return signature(image_bytes=encoded)["embedding"]

    return lambda images: embed_encoded(images).numpy()


def _litert_embedder(model: LiteRTModel) -> LiteRTModel:
    if "embedding" not in model.signatures:
        raise ValueError(_no_embedding(model.path, "embedding"))
    return LiteRTModel(model.path, model.threads, "embedding")


def _no_embedding(path: Path, signatures: str) -> str:
    return (
        f"{str(path)!r} has no embedding. Export it with --signatures "
        f"{signatures}, or omit --embedding."
    )
