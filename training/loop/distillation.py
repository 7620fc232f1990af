"""Distillation from any Keras teacher, through CaiT's single output."""

import importlib
import inspect
import re
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_cait.layers import bicubic_weights
from keras_cait.loading import load_model, published, saved_model_folder
from training.loop.losses import (
    hard_distillation,
    soft_distillation,
    soft_target_cross_entropy,
)
from training.recipe import Recipe

Loss = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]


def make_loss(recipe: Recipe, classes: int) -> Loss:
    """The recipe's loss, with its teacher if there is one.

    DeiT's student has two outputs. CaiT's single output learns from the targets
    and from the teacher: `(1 - w) * targets + w * teacher`, where w is
    `distillation_weight`. Called in the scope of the strategy.

    Args:
        recipe: the recipe.
        classes: number of classes of the student.

    Returns:
        Function of `(images, targets, logits)` to losses `(batch,)`. The images
        are those of the student, RGB in 0...255.

    Raises:
        ValueError: the teacher is missing, cannot be loaded or compiled, or
            has another number of classes or a sigmoid.

    Reference: Touvron et al., DeiT, section 4 (arXiv 2012.12877).
    """
    if recipe.distillation == "none":
        return lambda images, targets, logits: soft_target_cross_entropy(
            targets, logits
        )
    teacher = Teacher(recipe.teacher, classes)
    # Outside of a step, the variables of several devices do not compile.
    if recipe.xla and not tf.distribute.has_strategy():
        _check_xla(teacher, recipe)
    weight = recipe.distillation_weight

    def loss(
        images: tf.Tensor, targets: tf.Tensor, logits: tf.Tensor
    ) -> tf.Tensor:
        teacher_logits = teacher(images)
        if recipe.distillation == "hard":
            taught = hard_distillation(teacher_logits, logits)
        else:
            taught = soft_distillation(
                teacher_logits, logits, recipe.distillation_temperature
            )
        true = soft_target_cross_entropy(targets, logits)
        return (1 - weight) * true + weight * taught

    return loss


def check_teacher(recipe: Recipe) -> None:
    """Checks that the recipe's teacher exists, before the model is built.

    Raises:
        ValueError: there is no such file, folder or model.
    """
    source = recipe.teacher
    if recipe.distillation != "none" and not _is_ours(source):
        _application(source)


def _is_ours(source: str) -> bool:
    """Whether a teacher is a file, folder or published model."""
    return bool(source) and bool(published(source) or Path(source).exists())


class Teacher:
    """A frozen teacher, with its own image size and preprocessing.

    Args:
        source: a Keras model of RGB in 0...255, as in
            `keras_cait.loading.load_model`; a SavedModel with a signature
            `pixels` or `serving_default` of such images; or the name of a model
            of `keras.applications`, such as `"RegNetY160"`, with its ImageNet
            weights.
        classes: number of classes that it must have.

    Call arguments:
        images: `(batch, height, width, 3)` float tensor, RGB in 0...255.

    Returns:
        Logits `(batch, classes)`. Those of a teacher that returns probabilities
        are their logarithms, which have the same softmax.

    Raises:
        ValueError: the teacher is missing, cannot be loaded, or has another
            number of classes, several outputs, or a sigmoid.
    """

    def __init__(self, source: str, classes: int):
        self.preprocess: Callable[[tf.Tensor], tf.Tensor] = tf.identity
        exported = saved_model_folder(source) if source else None
        if exported:
            model = _saved_model(exported)
        elif _is_ours(source):
            model = load_model(source)
        else:
            build, self.preprocess = _application(source)
            model = build(classifier_activation=None)
        model.trainable = False
        self.model = model
        self.size = model.inputs[0].shape[1:3]
        shapes = [tuple(output.shape) for output in model.outputs]
        if shapes != [(None, classes)]:
            raise ValueError(
                f"The output of teacher {source!r} has shape "
                f"{' and '.join(map(str, shapes))}, but the dataset has "
                f"{classes} classes. Choose a teacher with the same classes, "
                "in the same order."
            )
        # Neither a SavedModel nor a model in a model tells its activation.
        size = (224, 224) if None in self.size else self.size
        noise = np.random.default_rng(0).uniform(0, 255, (8, *size, 3))
        strategy = tf.distribute.get_strategy()
        outputs = strategy.run(
            tf.function(self._outputs), args=(tf.constant(noise, tf.float32),)
        )
        found = strategy.experimental_local_results(outputs)[0].numpy()
        is_one = np.abs(found.sum(axis=-1) - 1) < 0.01
        self.is_softmax = bool(found.min() >= 0 and is_one.all())
        if found.min() >= 0 and found.max() <= 1 and not self.is_softmax:
            raise ValueError(
                f"Teacher {source!r} scores each class independently, as "
                "a sigmoid does. Give one that returns logits or a softmax, "
                "such as this one with classifier_activation=None."
            )

    def __call__(self, images: tf.Tensor) -> tf.Tensor:
        if None not in self.size and self.size != images.shape[1:3]:
            images = _resize(images, self.size)
        outputs = self._outputs(images)
        if self.is_softmax:
            outputs = tf.math.log(tf.maximum(outputs, 1e-30))
        return outputs

    def _outputs(self, images: tf.Tensor) -> tf.Tensor:
        """What the model itself returns for images of its size, in float32."""
        outputs = self.model(self.preprocess(images), training=False)
        (outputs,) = tf.nest.flatten(outputs)
        return tf.stop_gradient(tf.cast(outputs, tf.float32))


def _check_xla(teacher: Teacher, recipe: Recipe) -> None:
    """Raises ValueError for a teacher with an operation that XLA lacks."""
    compiled = tf.function(teacher, autograph=False, jit_compile=True)
    images = tf.TensorSpec((1, recipe.image_size, recipe.image_size, 3))
    try:
        compiled.experimental_get_compiler_ir(images)(stage="hlo")
    except ValueError as error:
        lacking = re.search(r"XLA_\w+: (\w+) \(No registered", str(error))
        if lacking:
            raise ValueError(
                f"XLA cannot compile {lacking[1]}, an operation of the teacher "
                f"{recipe.teacher!r}. Train with --no-xla."
            ) from None


def _resize(images: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """`tf.image.resize`, bicubic with antialiasing; XLA compiles this one."""
    rows, columns = map(bicubic_weights, images.shape[1:3], size)
    return tf.einsum("hy,byxc,wx->bhwc", rows, images, columns)


def _application(name: str) -> tuple[Callable, Callable]:
    """Constructor and preprocessing of a model of `keras.applications`."""
    build = getattr(keras.applications, name, None) if name else None
    if not inspect.isfunction(build):
        raise ValueError(
            "Distillation needs a teacher: a .keras file, a SavedModel, a "
            "published name (M36-384), or a model of keras.applications, such "
            f"as RegNetY160. Got {name!r}."
        )
    module = importlib.import_module(build.__module__)
    return build, module.preprocess_input


def _saved_model(folder: Path) -> keras.Model:
    loaded = tf.saved_model.load(str(folder))
    name = "pixels" if "pixels" in loaded.signatures else "serving_default"
    signature = loaded.signatures[name]
    (images,) = signature.structured_input_signature[1].values()
    layer = keras.layers.TFSMLayer(str(folder), call_endpoint=name)
    inputs = keras.Input(images.shape[1:], dtype=images.dtype.name)
    outputs = layer(inputs)
    return keras.Model(inputs, outputs.get("logits", outputs))
