"""Distillation of a CaiT from any Keras teacher, through its single output."""

from pathlib import Path

import keras
import tensorflow as tf

from training.loop.losses import (
    hard_distillation,
    soft_distillation,
    soft_target_cross_entropy,
)


def make_loss(recipe, classes):
    """The loss of a recipe, with its teacher, if it has one.

    DeiT gives a student two outputs; CaiT has one, which learns from the
    targets and from the teacher: `(1 - w) * targets + w * teacher`, with
    w = `distillation_weight`. To be called in the strategy's scope.

    Args:
        recipe: `Recipe`.
        classes: int. Number of classes of the student.

    Returns:
        A function of `(images, targets, logits)` to losses `(batch,)`; images
        are what the student sees, RGB in 0...255.

    Raises:
        ValueError: the teacher is missing, cannot be loaded, or has another
            number of classes.

    Reference: Touvron et al., DeiT, section 4 (arXiv 2012.12877).
    """
    if recipe.distillation == "none":
        return lambda images, targets, logits: soft_target_cross_entropy(
            targets, logits
        )
    teacher = Teacher(recipe.teacher, classes)
    weight = recipe.distillation_weight

    def loss(images, targets, logits):
        answers = teacher(images)
        if recipe.distillation == "hard":
            taught = hard_distillation(answers, logits)
        else:
            taught = soft_distillation(
                answers, logits, recipe.distillation_temperature
            )
        true = soft_target_cross_entropy(targets, logits)
        return (1 - weight) * true + weight * taught

    return loss


class Teacher:
    """A classifier that is only asked, with its own size and preprocessing.

    Args:
        source: str. A `.keras` file of a model of RGB in 0...255; a SavedModel
            with a signature `pixels` or `serving_default` of such images; or
            the name of a model of `keras.applications`, such as
            `"RegNetY160"`, with its ImageNet weights.
        classes: int. Number of classes that it must have.

    Call arguments:
        images: `(batch, height, width, 3)` float tensor of RGB in 0...255.

    Returns:
        Logits `(batch, classes)`; of a teacher that ends with a softmax, their
        logarithms, which have the same softmax.
    """

    def __init__(self, source, classes):
        if not source:
            raise ValueError(
                "Distillation needs a teacher: a .keras file, the folder of a "
                "SavedModel, or a model of keras.applications, such as "
                "RegNetY160. Received: teacher=''."
            )
        self.preprocess = tf.identity
        if source.endswith(".keras"):
            model = keras.models.load_model(source, compile=False)
        elif Path(source).is_dir():
            model = _saved_model(source)
        else:
            model, self.preprocess = _application(source)
        model.trainable = False
        self.model = model
        self.size = model.input.shape[1:3]
        head = model.layers[-1]
        activation = getattr(head, "activation", None)
        self.is_softmax = activation is keras.activations.softmax
        if model.output.shape != (None, classes):
            raise ValueError(
                f"The teacher {source!r} answers {tuple(model.output.shape)}, "
                f"but the data set has {classes} classes. Choose a teacher of "
                "the same classes, in the same order."
            )

    def __call__(self, images):
        if None not in self.size and self.size != images.shape[1:3]:
            images = tf.image.resize(
                images, self.size, "bicubic", antialias=True
            )
        answers = self.model(self.preprocess(images), training=False)
        answers = tf.stop_gradient(tf.cast(answers, tf.float32))
        if self.is_softmax:
            answers = tf.math.log(tf.maximum(answers, 1e-30))
        return answers


def _application(name):
    build = getattr(keras.applications, name, None)
    if not isinstance(build, type(_application)):
        raise ValueError(
            "The teacher must be a .keras file, the folder of a SavedModel, or "
            f"a model of keras.applications. Received: teacher={name!r}."
        )
    module = __import__(build.__module__, fromlist=["preprocess_input"])
    return build(classifier_activation=None), module.preprocess_input


def _saved_model(path):
    loaded = tf.saved_model.load(path)
    name = "pixels" if "pixels" in loaded.signatures else "serving_default"
    signature = loaded.signatures[name]
    (images,) = signature.structured_input_signature[1].values()
    key = "logits"
    if key not in signature.structured_outputs:
        (key,) = signature.structured_outputs
    layer = keras.layers.TFSMLayer(path, call_endpoint=name)
    inputs = keras.Input(images.shape[1:], dtype=images.dtype.name)
    return keras.Model(inputs, layer(inputs)[key])
