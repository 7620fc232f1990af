"""SavedModel for TF Serving: pictures as bytes or pixels in, labels out."""

from pathlib import Path

import tensorflow as tf

from export.decoding import decode_pictures
from export.inference_graph import check_labels


class Classifier(tf.Module):
    """The functions behind the signatures of the SavedModel.

    Args:
        model: `export.inference_graph.InferenceModel`.
        labels: list of str, by class.
        top: int > 0. How many classes the answer to a picture holds.
        xla: bool. Whether XLA compiles the model, once for each batch size.

    Raises:
        ValueError: `labels` are not one for each class, or `top` is not
            positive.
    """

    def __init__(self, model, labels, top=5, xla=False):
        super().__init__()
        check_labels(model, labels)
        if top < 1:
            raise ValueError(f"top must be at least 1. Received: top={top}.")
        self.model = model
        self.labels = tf.constant(labels)
        self.top = min(top, len(labels))
        self.xla = xla
        self.size = model.image_shape[:2]

    def run(self, images, *names):
        """The named answers of the model to images."""

        @tf.function(jit_compile=self.xla)
        def run(images):
            answers = self.model(images)
            return {name: answers[name] for name in names}

        return run(images)

    def best(self, probabilities):
        scores, indices = tf.math.top_k(probabilities, self.top)
        return {"classes": tf.gather(self.labels, indices), "scores": scores}

    def answer_bytes(self, image_bytes):
        """Encoded pictures to their best classes."""
        images = decode_pictures(image_bytes, self.size)
        return self.best(self.run(images, "probabilities")["probabilities"])

    def answer_pixels(self, images):
        """RGB in 0...255 to logits and probabilities of all classes."""
        return self.run(images, "logits", "probabilities")

    def embed(self, image_bytes):
        """Encoded pictures to the class token after the last norm."""
        images = decode_pictures(image_bytes, self.size)
        return self.run(images, "embedding")

    def attend(self, image_bytes):
        """Encoded pictures to class attention, and to their best classes."""
        images = decode_pictures(image_bytes, self.size)
        answers = self.run(images, "attention", "probabilities")
        return {
            "attention": answers["attention"],
            **self.best(answers["probabilities"]),
        }

    def classify(self, inputs):
        """Serialized `tf.Example`s with `image/encoded`, for Classify."""
        feature = {"image/encoded": tf.io.FixedLenFeature((), tf.string)}
        examples = tf.io.parse_example(inputs, feature)
        return self.answer_bytes(examples["image/encoded"])

    def signatures(self):
        """The concrete functions of all signatures, by name."""
        image_bytes = tf.TensorSpec((None,), tf.string, "image_bytes")
        images = tf.TensorSpec(
            (None, *self.model.image_shape), tf.uint8, "images"
        )
        inputs = tf.TensorSpec((None,), tf.string, "inputs")
        return {
            name: tf.function(function).get_concrete_function(spec)
            for name, function, spec in (
                ("serving_default", self.answer_bytes, image_bytes),
                ("pixels", self.answer_pixels, images),
                ("embedding", self.embed, image_bytes),
                ("attention", self.attend, image_bytes),
                ("classify", self.classify, inputs),
            )
        }


def write_saved_model(model, labels, path, top=5, xla=False):
    """Writes a SavedModel with all its signatures.

    | signature | input | output |
    |---|---|---|
    | `serving_default` | `image_bytes` | `classes`, `scores` |
    | `pixels` | `images` | `logits`, `probabilities` |
    | `embedding` | `image_bytes` | `embedding` |
    | `attention` | `image_bytes` | `attention`, `classes`, `scores` |
    | `classify` | `inputs`, serialized `tf.Example`s | `classes`, `scores` |

    `image_bytes` are encoded pictures `(batch,)`, `images` uint8
    `(batch, height, width, 3)`, `classes` strings and `scores` float32, both
    `(batch, top)`. TensorFlow alone loads it.

    Args:
        model: `export.inference_graph.InferenceModel`.
        labels: list of str, by class.
        path: path of the folder to write; it must not exist.
        top: int > 0. How many classes the answer to a picture holds.
        xla: bool. Whether XLA compiles the model, once for each batch size.

    Raises:
        ValueError: `labels` or `top` do not fit the model.
    """
    classifier = Classifier(model, labels, top, xla)
    signatures = classifier.signatures()
    tf.saved_model.save(classifier, str(path), signatures=signatures)
    # The server takes Classify requests for signatures of this method alone.
    updater = tf.compat.v1.saved_model.signature_def_utils.MethodNameUpdater(
        str(path)
    )
    updater.replace_method_name("classify", "tensorflow/serving/classify")
    updater.save()
    extra = Path(path) / "assets.extra"
    extra.mkdir()
    (extra / "labels.txt").write_text("\n".join(labels) + "\n")
