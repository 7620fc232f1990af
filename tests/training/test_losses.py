"""Losses beside those of timm and DeiT."""

import numpy as np
import pytest
import tensorflow as tf

from tests.helpers.reference import reference
from training.data.mixup import smooth_one_hot
from training.loop.losses import (
    balanced,
    hard_distillation,
    soft_distillation,
    soft_target_cross_entropy,
)

LOSSES, LOSSES_ARRAYS = reference("recipe/losses")
DISTILLATION, DISTILLATION_ARRAYS = reference("recipe/distillation")


def assert_loss(function, logits, expected, expected_gradient):
    """The mean over the batch and its gradient, summed in unequal parts."""
    logits = tf.constant(logits, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        per_example = function(logits)
        first, rest = per_example[:1], per_example[1:]
        loss = (tf.reduce_sum(first) + tf.reduce_sum(rest)) / len(logits)
    assert per_example.shape == (len(logits),)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(
        tape.gradient(loss, logits), expected_gradient, rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("case", LOSSES["cases"], ids=lambda case: case["name"])
@pytest.mark.parametrize("kind", ["soft_target_ce", "label_smoothing_ce"])
def test_losses_are_those_of_timm(case, kind):
    arrays = {
        key: LOSSES_ARRAYS[f"{case['name']}_{key}"]
        for key in ("logits", "labels", "soft_targets", kind, f"{kind}_grad")
    }
    targets = {
        "soft_target_ce": arrays["soft_targets"],
        "label_smoothing_ce": smooth_one_hot(
            arrays["labels"], case["classes"], case["smoothing"]
        ),
    }[kind]
    assert_loss(
        lambda logits: soft_target_cross_entropy(targets, logits),
        arrays["logits"],
        arrays[kind],
        arrays[f"{kind}_grad"],
    )


@pytest.mark.parametrize(
    "case", DISTILLATION["cases"], ids=lambda case: case["name"]
)
@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("base", ["soft_target_ce", "label_smoothing_ce"])
def test_distillation_is_that_of_deit(case, kind, base):
    arrays = {
        key.removeprefix(f"{case['name']}_"): array
        for key, array in DISTILLATION_ARRAYS.items()
        if key.startswith(f"{case['name']}_")
    }
    alpha = case["alpha"]
    # DeiT's student learns from the teacher with a second head.
    true_part = (1 - alpha) * arrays[f"none_{base}"]

    def distillation(logits):
        if kind == "hard":
            loss = hard_distillation(arrays["teacher"], logits)
        else:
            loss = soft_distillation(arrays["teacher"], logits, case["tau"])
        return true_part + alpha * loss

    assert_loss(
        distillation,
        arrays["logits_kd"],
        arrays[f"{kind}_{base}"],
        arrays[f"{kind}_{base}_grad_kd"],
    )


@pytest.mark.parametrize("dtype", [tf.bfloat16, tf.float16])
def test_losses_of_half_precision_are_float32(dtype):
    arrays = {
        key: DISTILLATION_ARRAYS[f"a_{key}"]
        for key in ("logits", "teacher", "soft_targets")
    }
    logits = tf.cast(arrays["logits"], dtype)
    for loss in (
        lambda x: soft_target_cross_entropy(arrays["soft_targets"], x),
        lambda x: hard_distillation(arrays["teacher"], x),
        lambda x: soft_distillation(arrays["teacher"], x, 3.0),
    ):
        ours = loss(logits)
        assert ours.dtype == tf.float32
        np.testing.assert_array_equal(ours, loss(tf.cast(logits, tf.float32)))


def test_a_balanced_loss_is_blind_to_the_frequency_of_classes():
    """A model that sees nothing in the images then prefers no class."""
    labels = [0] * 1 + [1] * 3 + [2] * 12
    targets = tf.one_hot(labels, 3)

    def plain(images, targets, logits):
        return soft_target_cross_entropy(targets, logits)

    assert balanced(plain, [4, 4, 4]) is plain
    for loss, expected in (
        (balanced(plain, [1, 3, 12]), [0, 0, 0]),
        (plain, [16 / 3 - 1, 16 / 3 - 3, 16 / 3 - 12]),
    ):
        bias = tf.zeros(3)
        with tf.GradientTape() as tape:
            tape.watch(bias)
            logits = tf.tile(bias[None], (16, 1))
            total = tf.reduce_sum(loss(None, targets, logits))
        gradient = tape.gradient(total, bias)
        np.testing.assert_allclose(gradient, expected, atol=1e-5)
