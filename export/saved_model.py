"""Writes a SavedModel for TensorFlow Serving."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from export.inference_graph import InferenceModel
from export.options import SERVED_SIGNATURES, ServedSignature
from keras_cait.decoding import decode_batch, decode_each, each
from keras_cait.preprocessing import MAX_MEGAPIXELS


def write_saved_model(
    model: InferenceModel,
    labels: Sequence[str],
    path: str | Path,
    top: int = 5,
    xla: bool = False,
    max_megapixels: float = MAX_MEGAPIXELS,
    fast_jpeg: bool = False,
    signatures: Sequence[ServedSignature] = SERVED_SIGNATURES,
    strict: bool = False,
    parts: int = 1,
) -> None:
    """Writes a SavedModel with its signatures.

    | signature | input | outputs |
    |---|---|---|
    | `serving_default` | `image_bytes` | `classes`, `scores`, `error` |
    | `pixels` | `images` | `logits`, `probabilities` |
    | `embedding` | `image_bytes` | `embedding`, `error` |
    | `attention` | `image_bytes` | `attention`, and as `serving_default` |
    | `classify` | `inputs`, serialized `tf.Example`s | `classes`, `scores` |

    `image_bytes` are encoded images `(batch,)` and `images` uint8
    `(batch, height, width, 3)`. `classes` are strings and `scores` float32,
    both `(batch, top)`. Loading the SavedModel needs only TensorFlow.

    Each encoded image has its own result. If one is refused, its `error`,
    a string of `(batch,)`, says why, its numbers are NaN and its classes
    empty. (The Classify API has no room for `error`.) For an image that is
    not refused, `error` is empty.

    Args:
        model: the inference graph to write.
        labels: names of the classes, in order.
        path: folder to write; it must not exist.
        top: int > 0. Number of classes in `classes` and `scores`.
        xla: whether XLA compiles the model, once per batch size.
        max_megapixels: encoded images of more pixels are refused.
        fast_jpeg: as in `keras_cait.decoding.decode_each`.
        signatures: those to write. With `pixels` alone, the graph decodes no
            images, and engines other than TensorFlow take it, too.
        strict: whether a call fails if any of its images is refused. There is
            no output `error` then.
        parts: as in `InferenceModel`.

    Raises:
        ValueError: `labels`, `top` or `parts` do not fit the model, or there
            are no signatures.
    """
    if not signatures:
        raise ValueError(
            f"Give at least one signature: {', '.join(SERVED_SIGNATURES)}."
        )
    served = Signatures(
        model, labels, top, xla, max_megapixels, fast_jpeg, strict, parts
    )
    functions = served.concrete_functions(signatures)
    # Only the model, so that no function is saved that no signature needs.
    tf.saved_model.save(model, str(path), signatures=functions)
    if "classify" in signatures:
        accept_classify_requests(path)
    extra = Path(path) / "assets.extra"
    extra.mkdir()
    text = "\n".join(labels) + "\n"
    (extra / "labels.txt").write_text(text, encoding="utf-8")


def accept_classify_requests(path: str | Path) -> None:
    """Sets the only method name for which the server accepts them."""
    updater = tf.compat.v1.saved_model.signature_def_utils.MethodNameUpdater(
        str(path)
    )
    updater.replace_method_name("classify", "tensorflow/serving/classify")
    updater.save()


class Signatures(tf.Module):
    """The functions behind the signatures of a SavedModel.

    Args:
        model, labels, top, xla, max_megapixels, fast_jpeg, strict, parts: as
            of `write_saved_model`.

    Raises:
        ValueError: `labels`, `top` or `parts` do not fit the model.
    """

    def __init__(
        self,
        model: InferenceModel,
        labels: Sequence[str],
        top: int = 5,
        xla: bool = False,
        max_megapixels: float = MAX_MEGAPIXELS,
        fast_jpeg: bool = False,
        strict: bool = False,
        parts: int = 1,
    ):
        super().__init__()
        if len(labels) != model.classes:
            raise ValueError(
                f"Got {len(labels)} labels for {model.classes} classes. Give "
                "one label per class, in the order of the classes."
            )
        if top < 1:
            raise ValueError(f"top must be at least 1. Got {top}.")
        if not 1 <= parts <= model.patches:
            raise ValueError(
                f"parts must be at least 1 and at most {model.patches}, the "
                f"number of patches. Got {parts}."
            )
        self.model = model
        self.labels = tf.constant(labels)
        self.top = min(top, len(labels))
        self.xla = xla
        self.image_size = model.image_size
        self.max_megapixels = max_megapixels
        self.fast_jpeg = fast_jpeg
        self.strict = strict
        self.parts = parts

    def concrete_functions(
        self, names: Sequence[ServedSignature] = SERVED_SIGNATURES
    ) -> dict[str, Callable]:
        """Signatures by name."""
        image_bytes = tf.TensorSpec((None,), tf.string, "image_bytes")
        images = tf.TensorSpec((None, *self.image_size, 3), tf.uint8, "images")
        inputs = tf.TensorSpec((None,), tf.string, "inputs")
        return {
            name: tf.function(function).get_concrete_function(spec)
            for name, function, spec in (
                ("serving_default", self.classify_bytes, image_bytes),
                ("pixels", self.classify_pixels, images),
                ("embedding", self.embed, image_bytes),
                ("attention", self.attend, image_bytes),
                ("classify", self.classify_examples, inputs),
            )
            if name in names
        }

    # Traced once, for all signatures.
    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string)])
    def decode(self, image_bytes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The model's input from encoded images, and why one is refused."""
        image_bytes = tf.ensure_shape(image_bytes, (None,))
        size, limit = self.image_size, self.max_megapixels
        if self.strict:
            images = decode_batch(image_bytes, size, 1, limit, self.fast_jpeg)
            return images, tf.zeros_like(image_bytes)
        return decode_each(image_bytes, size, 1, limit, self.fast_jpeg)

    def classify_bytes(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        """Top classes of encoded images."""
        images, errors = self.decode(image_bytes)
        outputs = self.run(images, "probabilities")
        return self.answers(self.best(outputs["probabilities"]), errors)

    def classify_pixels(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """Logits and probabilities of RGB images in 0...255."""
        # A request's shape is not compared with the signature's.
        images = tf.ensure_shape(images, (None, *self.image_size, 3))
        return self.run(images, "logits", "probabilities")

    def embed(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        """Class token after the last norm, of encoded images."""
        images, errors = self.decode(image_bytes)
        return self.answers(self.run(images, "embedding"), errors)

    def attend(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        """Class attention and top classes of encoded images."""
        images, errors = self.decode(image_bytes)
        outputs = self.run(images, "attention", "probabilities")
        best = self.best(outputs.pop("probabilities"))
        return self.answers(outputs | best, errors)

    def classify_examples(self, inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        """Top classes of serialized `tf.Example`s with `image/encoded`."""
        feature = {"image/encoded": tf.io.FixedLenFeature((), tf.string)}

        def encoded(examples: tf.Tensor) -> Any:
            return tf.io.parse_example(examples, feature)["image/encoded"]

        if self.strict:
            return self.classify_bytes(encoded(inputs))
        image_bytes, _ = each(inputs, encoded, (), tf.string)
        outputs = self.classify_bytes(image_bytes)
        # The server refuses to classify with a third output.
        return {name: outputs[name] for name in ("classes", "scores")}

    def answers(
        self, outputs: dict[str, tf.Tensor], errors: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """The outputs, blank where an image is refused, and the reasons."""
        if self.strict:
            return outputs

        def blank(output: tf.Tensor) -> tf.Tensor:
            refused = tf.reshape(errors != "", [-1] + [1] * (output.ndim - 1))
            nothing = "" if output.dtype == tf.string else math.nan
            return tf.where(refused, tf.cast(nothing, output.dtype), output)

        blanked = {name: blank(output) for name, output in outputs.items()}
        return blanked | {"error": errors}

    def run(self, images: tf.Tensor, *names: str) -> dict[str, tf.Tensor]:
        """The named outputs of the model."""

        @tf.function(jit_compile=self.xla)
        def run(images):
            outputs = self.model(images, parts=self.parts)
            return {name: outputs[name] for name in names}

        return run(images)

    def best(self, probabilities: tf.Tensor) -> dict[str, tf.Tensor]:
        """Labels and scores of the top classes."""
        scores, indices = tf.math.top_k(probabilities, self.top)
        return {"classes": tf.gather(self.labels, indices), "scores": scores}
