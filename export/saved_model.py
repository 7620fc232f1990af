"""Writes a SavedModel for TensorFlow Serving."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from export.exportable import check_labels
from export.inference_graph import InferenceModel
from export.options import SERVED_SIGNATURES, ServedSignature
from keras_cait.decoding import decode_batch
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
) -> None:
    """Writes a SavedModel with its signatures.

    | signature | input | outputs |
    |---|---|---|
    | `serving_default` | `image_bytes` | `classes`, `scores` |
    | `pixels` | `images` | `logits`, `probabilities` |
    | `embedding` | `image_bytes` | `embedding` |
    | `attention` | `image_bytes` | `attention`, `classes`, `scores` |
    | `classify` | `inputs`, serialized `tf.Example`s | `classes`, `scores` |

    `image_bytes` are encoded images `(batch,)` and `images` uint8
    `(batch, height, width, 3)`. `classes` are strings and `scores` float32,
    both `(batch, top)`. Loading the SavedModel needs only TensorFlow.

    Args:
        model: the inference graph to write.
        labels: names of the classes, in order.
        path: folder to write; it must not exist.
        top: int > 0. Number of classes in `classes` and `scores`.
        xla: whether XLA compiles the model, once per batch size.
        max_megapixels: encoded images of more pixels are refused.
        fast_jpeg: as of `keras_cait.decoding.decode_batch`.
        signatures: those to write. With `pixels` alone, the graph decodes no
            images, and engines other than TensorFlow take it, too.

    Raises:
        ValueError: `labels` or `top` do not fit the model, or there are no
            signatures.
    """
    if not signatures:
        raise ValueError(
            f"Give at least one signature: {', '.join(SERVED_SIGNATURES)}."
        )
    served = Signatures(model, labels, top, xla, max_megapixels, fast_jpeg)
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
        model, labels, top, xla, max_megapixels, fast_jpeg: as of
            `write_saved_model`.

    Raises:
        ValueError: `labels` or `top` do not fit the model.
    """

    def __init__(
        self,
        model: InferenceModel,
        labels: Sequence[str],
        top: int = 5,
        xla: bool = False,
        max_megapixels: float = MAX_MEGAPIXELS,
        fast_jpeg: bool = False,
    ):
        super().__init__()
        check_labels(labels, model.classes)
        if top < 1:
            raise ValueError(f"top must be at least 1. Got {top}.")
        self.model = model
        self.labels = tf.constant(labels)
        self.top = min(top, len(labels))
        self.xla = xla
        self.image_size = model.image_size
        self.max_megapixels = max_megapixels
        self.fast_jpeg = fast_jpeg

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
    def decode(self, image_bytes: tf.Tensor) -> tf.Tensor:
        """The model's input from encoded images."""
        return decode_batch(
            image_bytes,
            self.image_size,
            max_megapixels=self.max_megapixels,
            fast_jpeg=self.fast_jpeg,
        )

    def classify_bytes(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        """Top classes of encoded images."""
        images = self.decode(image_bytes)
        return self.best(self.run(images, "probabilities")["probabilities"])

    def classify_pixels(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        """Logits and probabilities of RGB images in 0...255."""
        return self.run(images, "logits", "probabilities")

    def embed(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        """Class token after the last norm, of encoded images."""
        images = self.decode(image_bytes)
        return self.run(images, "embedding")

    def attend(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        """Class attention and top classes of encoded images."""
        images = self.decode(image_bytes)
        outputs = self.run(images, "attention", "probabilities")
        return {
            "attention": outputs["attention"],
            **self.best(outputs["probabilities"]),
        }

    def classify_examples(self, inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        """Top classes of serialized `tf.Example`s with `image/encoded`."""
        feature = {"image/encoded": tf.io.FixedLenFeature((), tf.string)}
        examples = tf.io.parse_example(inputs, feature)
        encoded: Any = examples["image/encoded"]
        return self.classify_bytes(encoded)

    def run(self, images: tf.Tensor, *names: str) -> dict[str, tf.Tensor]:
        """The named outputs of the model."""

        @tf.function(jit_compile=self.xla)
        def run(images):
            outputs = self.model(images)
            return {name: outputs[name] for name in names}

        return run(images)

    def best(self, probabilities: tf.Tensor) -> dict[str, tf.Tensor]:
        """Labels and scores of the top classes."""
        scores, indices = tf.math.top_k(probabilities, self.top)
        return {"classes": tf.gather(self.labels, indices), "scores": scores}
