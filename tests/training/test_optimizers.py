"""The optimizer, schedule and order of a recipe."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

import keras_cait
from tests.helpers.reference import reference
from training.data.datasets import Examples
from training.data.pipeline import index_at
from training.loop.optimizers import make_optimizer
from training.recipes import QUICKSTART, RECIPES

SAMPLER, ORDERS = reference("recipe/ra_sampler")


@pytest.mark.parametrize("name", ["s24-224", "m48-448", "cars", "finetune"])
def test_optimizer_and_schedule_are_the_recipes(name, small_model):
    """Linear in the batch, and never below the last rate before the end."""
    recipe = RECIPES[name]
    optimizer = make_optimizer(recipe, small_model, 10)
    kind = keras_cait.SGD if recipe.optimizer == "sgd" else keras_cait.AdamW
    assert isinstance(optimizer, kind)
    rate = optimizer._learning_rate
    warm_up = recipe.warmup_epochs
    steps = [0, warm_up / 2, warm_up, recipe.epochs / 2, recipe.epochs]
    first, half, warm, middle, last = (float(rate(10 * at)) for at in steps)
    peak = recipe.learning_rate * recipe.global_batch_size / 512
    floor = min(peak, recipe.min_learning_rate)
    assert first == pytest.approx(recipe.warmup_learning_rate)
    assert half == pytest.approx((first + peak) / 2)
    cosine = (1 + np.cos(np.pi * warm_up / recipe.epochs)) / 2
    assert warm == pytest.approx(floor + (peak - floor) * cosine)
    assert last == pytest.approx(floor, rel=1e-3)
    assert warm >= middle >= last
    assert optimizer.weight_decay == recipe.weight_decay
    assert optimizer.layer_decay == recipe.layer_decay
    assert (optimizer.global_clipnorm or 0) == recipe.clip_norm


@pytest.mark.parametrize("case", SAMPLER["cases"], ids=lambda c: c["name"])
def test_repeated_augmentation_is_the_references(case):
    """Three times in a row over all ranks, a third of the images an epoch."""
    for epoch in case["epochs"]:
        key = f"{case['name']}_epoch{epoch}"
        ranks, order = ORDERS[f"{key}_ranks"], ORDERS[f"{key}_permutation"]
        interleaved = ranks.T.ravel()
        expected = np.repeat(order, case["repeats"])[: interleaved.size]
        np.testing.assert_array_equal(interleaved, expected)
    # Ours differs only in the permutation.
    recipe = dataclasses.replace(
        QUICKSTART, global_batch_size=8, repeated_augmentation=3
    )
    numbers = Examples(case["length"], ("a",), lambda index: (index, index))
    size = case["length"] // 8 * 8
    ours = [
        int(index_at(tf.constant(place, tf.int64), numbers, recipe))
        for place in range(0, size)
    ]
    assert ours[0] == ours[1] == ours[2] and ours[3] == ours[5]
    assert len(set(ours)) == -(-size // 3)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_consistent(name):
    recipe = RECIPES[name].resolved()
    assert recipe.embed_dim % recipe.num_heads == 0
    assert recipe.image_size % recipe.patch_size == 0
    assert recipe.global_batch_size % recipe.mixing_batch_size == 0
    assert dataclasses.replace(recipe) == recipe
