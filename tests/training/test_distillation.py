"""Teachers of every kind."""

import dataclasses
import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.helpers.models import randomise, small
from training.loop.distillation import Teacher, make_loss
from training.loop.losses import (
    hard_distillation,
    soft_distillation,
    soft_target_cross_entropy,
)
from training.recipes import QUICKSTART


def cait(activation=None, **arguments):
    return randomise(
        small(depth=1, classifier_activation=activation, **arguments)
    )


@pytest.mark.parametrize(
    ("kind", "xla"),
    [
        ("logits", True),
        ("softmax", True),
        ("softmax in a model", False),
        ("saved_model", True),
        ("saved_model softmax", False),
    ],
)
def test_a_teacher_predicts_at_its_own_size(kind, xla, images, tmp_path):
    model = cait("softmax" if "softmax" in kind else None)
    path = tmp_path / "teacher.keras"
    if kind == "softmax in a model":
        model = keras.Sequential([keras.Input((32, 32, 3)), model])
    if kind.startswith("saved_model"):
        path = tmp_path / "teacher"
        model.export(path, verbose=False)
    else:
        model.save(path)
    images = tf.image.resize(images, (48, 48), "bicubic")
    resized = tf.image.resize(images, (32, 32), "bicubic", antialias=True)
    expected = tf.nn.softmax(cait()(resized))
    teacher = tf.function(Teacher(str(path), classes=5), jit_compile=xla)
    np.testing.assert_allclose(
        tf.nn.softmax(teacher(images)), expected, atol=1e-5
    )
    with pytest.raises(ValueError, match="the dataset has 10 classes"):
        Teacher(str(path), classes=10)


@pytest.mark.parametrize("kind", ["keras", "saved_model"])
def test_a_teacher_with_two_outputs_is_a_clear_error(kind, tmp_path):
    model, path = cait(), tmp_path / "teacher.keras"
    model = keras.Model(model.input, {"a": model.output, "b": model.output})
    if kind == "keras":
        model.save(path)
    else:
        model.export(path, verbose=False)
    with pytest.raises(ValueError, match=r"shape \(None, 5\) and \(None, 5\)"):
        Teacher(str(path), classes=5)


def test_a_teacher_of_independent_scores_is_a_clear_error(tmp_path):
    pixels = keras.layers.GlobalAveragePooling2D()
    head = keras.layers.Dense(5, "sigmoid")
    model = keras.Sequential([keras.Input((32, 32, 3)), pixels, head])
    model.save(tmp_path / "teacher.keras")
    with pytest.raises(ValueError, match="as a sigmoid does"):
        Teacher(str(tmp_path / "teacher.keras"), classes=5)


@pytest.mark.parametrize("source", ["", "NoSuchModel", "keras"])
def test_a_missing_teacher_is_a_clear_error(source):
    with pytest.raises(ValueError, match=r"SavedModel.*Got"):
        Teacher(source, classes=5)


@pytest.mark.parametrize(
    ("kind", "distill"),
    [
        ("hard", hard_distillation),
        ("soft", functools.partial(soft_distillation, temperature=2.0)),
    ],
)
def test_the_teacher_has_its_share_of_the_loss(kind, distill, images, tmp_path):
    cait().save(tmp_path / "teacher.keras")
    recipe = dataclasses.replace(
        QUICKSTART,
        distillation=kind,
        distillation_weight=0.25,
        distillation_temperature=2.0,
        teacher=str(tmp_path / "teacher.keras"),
    )
    images = tf.cast(images, tf.float32)
    targets = tf.constant([[0.5, 0.5, 0, 0, 0], [0, 0, 1, 0, 0]])
    logits = tf.constant([[1.0, 2, 3, 4, 5], [5, 4, 3, 2, 1]])
    expected = 0.75 * soft_target_cross_entropy(targets, logits)
    expected += 0.25 * distill(cait()(images), logits)
    loss = make_loss(recipe, classes=5)
    np.testing.assert_allclose(
        loss(images, targets, logits), expected, rtol=1e-6
    )


def test_a_teacher_that_xla_cannot_compile_is_a_clear_error(tmp_path):
    @tf.function(input_signature=[tf.TensorSpec((None, 28, 28, 3))])
    def shrink(images):
        images = tf.image.resize(images, (1, 5), "bicubic", antialias=True)
        return {"logits": images[:, 0, :, 0]}

    module = tf.Module()
    tf.saved_model.save(module, str(tmp_path), signatures=shrink)
    recipe = dataclasses.replace(
        QUICKSTART, distillation="soft", teacher=str(tmp_path)
    )
    with pytest.raises(ValueError, match=r"ScaleAndTranslate.*--no-xla"):
        make_loss(recipe, classes=5)
    make_loss(dataclasses.replace(recipe, xla=False), classes=5)
