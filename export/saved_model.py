"""SavedModel for TF Serving: pictures as bytes or pixels in, labels out."""

import tensorflow as tf

from keras_cait.preprocessing import resize_and_crop_in_graph


class Classifier(tf.Module):
    """The functions behind the signatures of the SavedModel.

    Args:
        model: the model of `export.inference.inference_model`.
        labels: list of str, by class.
        top: int. How many classes the answer to a picture holds.
    """

    def __init__(self, model, labels, top):
        super().__init__()
        self.model = model
        self.labels = tf.constant(labels)
        self.top = min(top, len(labels))
        _, *self.size, self.channels = model.input.shape

    @tf.function
    def classify_bytes(self, image_bytes):
        """Encoded pictures `(batch,)` to labels and scores `(batch, top)`."""
        images = tf.map_fn(
            self.decode, image_bytes, fn_output_signature=tf.float32
        )
        scores, indices = tf.math.top_k(
            self.model(images)["probabilities"], self.top
        )
        return {"classes": tf.gather(self.labels, indices), "scores": scores}

    @tf.function
    def classify_pixels(self, images):
        """RGB in 0...255 to logits and probabilities `(batch, classes)`."""
        return self.model(tf.cast(images, tf.float32))

    def decode(self, encoded):
        """One encoded picture to pixels of the model's size, in 0...255."""
        image = tf.io.decode_image(
            encoded, channels=self.channels, expand_animations=False
        )
        return resize_and_crop_in_graph(image, self.size)


def write_saved_model(model, labels, path, top=5):
    """Writes a SavedModel with its signatures.

    `serving_default` takes `image_bytes`, encoded JPEG, PNG, GIF or BMP, and
    gives `classes` and `scores`; `pixels` takes `images`, uint8, and gives
    `logits` and `probabilities`. TensorFlow alone loads it.

    Args:
        model: the model of `export.inference.inference_model`.
        labels: list of str, by class.
        path: path of the folder to write; it must not exist.
        top: int. How many classes the answer to a picture holds.
    """
    classifier = Classifier(model, labels, top)
    signatures = {
        "serving_default": classifier.classify_bytes.get_concrete_function(
            tf.TensorSpec((None,), tf.string, name="image_bytes")
        ),
        "pixels": classifier.classify_pixels.get_concrete_function(
            tf.TensorSpec((None, *model.input.shape[1:]), tf.uint8, "images")
        ),
    }
    tf.saved_model.save(classifier, str(path), signatures=signatures)
