"""The optimizer, schedule and order of the reference recipe."""

import dataclasses
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_cait
from keras_cait.conversion import to_reference
from tests.helpers.reference import REFERENCE, reference
from training.data.datasets import Examples
from training.data.pipeline import index_at
from training.loop.optimizers import (
    AdamW,
    WarmupCosine,
    decays,
    freeze,
    make_optimizer,
)
from training.recipes import QUICKSTART, RECIPES

ADAMW, ADAMW_RUNS = reference("recipe/adamw")
SCHEDULE, RATES = reference("recipe/cosine_schedule")
SAMPLER, ORDERS = reference("recipe/ra_sampler")


@pytest.mark.parametrize("case", ADAMW["cases"], ids=lambda case: case["name"])
def test_adamw_is_the_references(case):
    """Also with gradients of the order of epsilon, as gammas have them."""

    @keras.saving.register_keras_serializable(package="tests")
    class Rates(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            step = tf.minimum(int(step), len(case["lr"]) - 1)
            return tf.gather(tf.constant(case["lr"], tf.float64), step)

    runs = {
        name: ADAMW_RUNS[f"{case['name']}_{name}"] for name in case["params"]
    }
    variables = [
        keras.Variable(run[0], dtype="float64", name=name)
        for name, run in runs.items()
    ]
    optimizer = AdamW(
        Rates(), epsilon=case["eps"], global_clipnorm=case.get("clip_grad")
    )
    optimizer.arrange(
        variables,
        [p["weight_decay"] for p in case["params"].values()],
        [1.0] * len(variables),
    )
    for step in range(case["steps"]):
        gradients = [
            tf.constant(ADAMW_RUNS[f"{case['name']}_{name}_grads"][step])
            for name in runs
        ]
        optimizer.apply(gradients, variables)
        for variable, run in zip(variables, runs.values(), strict=True):
            # Keras keeps the moments in float32.
            np.testing.assert_allclose(
                variable, run[step + 1], rtol=2e-6, atol=1e-9
            )


@pytest.mark.parametrize("case", SCHEDULE["cases"], ids=lambda c: c["name"])
def test_schedule_meets_the_references_at_every_epoch(case):
    recorded = RATES[f"{case['name']}_lr_at_t"]
    peak = 5e-4 * case["global_batch"] / 512
    rate = WarmupCosine(peak, 1e-5, 1e-6, case["epochs"], 5, 7)
    ours = [float(rate(7 * epoch)) for epoch in range(len(recorded))]
    np.testing.assert_allclose(ours, recorded, rtol=1e-4)


def test_decaying_weights_are_the_references():
    path = REFERENCE / "recipe/weight_decay_groups.json"
    recorded = json.loads(path.read_text())
    model = keras_cait.CaiT_XXS24(weights=None)
    ours = {True: set(), False: set()}
    for variable in model.trainable_weights:
        variable.assign(keras.ops.full(variable.shape, float(decays(variable))))
    for name, array in to_reference(model.weights).items():
        ours[bool(array.all())].add(name)
    assert ours == {
        True: set(recorded["decay"]),
        False: set(recorded["no_decay"]),
    }


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


@pytest.mark.parametrize(
    ("trainable", "learns"),
    [
        ("head", {"head"}),
        ("attention", {"head", "qkv", "query", "proj_logits", "proj"}),
    ],
)
def test_frozen_weights_stay(small_model, trainable, learns):
    freeze(small_model, trainable)
    recipe = dataclasses.replace(
        QUICKSTART, layer_decay=0.5, warmup_epochs=0, weight_decay=0.1
    )
    optimizer = make_optimizer(recipe, small_model, 10)
    before = {v.path: np.array(v.value) for v in small_model.weights}
    variables = small_model.trainable_variables
    optimizer.apply([tf.ones(v.shape) for v in variables], variables)
    moved = {
        part
        for v in small_model.weights
        if not np.array_equal(v, before[v.path])
        for part in v.path.split("/")
    }
    assert learns <= moved
    assert not {"mlp", "norm1", "position_embedding", "gamma"} & moved
    freeze(small_model, "all")
    assert len(small_model.trainable_variables) == len(before)


def test_layer_decay_slows_lower_layers(small_model):
    """With equal gradients, Adam's first step is the rate of a variable."""
    recipe = dataclasses.replace(
        QUICKSTART, layer_decay=0.5, warmup_epochs=0, weight_decay=0.0
    )
    optimizer = make_optimizer(recipe, small_model, 10)
    variables = small_model.trainable_variables
    before = {v.path: np.array(v.value) for v in variables}
    optimizer.apply([tf.ones(v.shape) for v in variables], variables)
    rate = float(recipe.learning_rate * recipe.global_batch_size / 512)
    for path, layers_below_the_head in (
        ("head/kernel", 0),
        ("class_attention_block_0/norm1/gamma", 1),
        ("self_attention_block_1/mlp/fc1/bias", 2),
        ("self_attention_block_0/mlp/fc1/bias", 3),
        ("position_embedding/position_embedding", 4),
    ):
        (variable,) = (v for v in variables if v.path == path)
        step = np.abs(np.array(variable.value) - before[path]).max()
        expected = rate * recipe.clip_norm * 0.5**layers_below_the_head
        assert step == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_consistent(name):
    recipe = RECIPES[name].resolved()
    assert recipe.embed_dim % recipe.num_heads == 0
    assert recipe.image_size % recipe.patch_size == 0
    assert recipe.global_batch_size % recipe.mixing_batch_size == 0
    assert dataclasses.replace(recipe) == recipe
