"""Optimizers, schedule, and the weights that learn and decay."""

import json
import warnings

import keras
import numpy as np
import pytest
from keras import ops

import keras_cait
from keras_cait.conversion import reference_name
from keras_cait.optimizers import (
    SGD,
    AdamW,
    WarmupCosine,
    decays,
    freeze,
    rate_factors,
)
from tests.helpers.models import without_values
from tests.helpers.reference import REFERENCE, reference

ADAMW, ADAMW_RUNS = reference("recipe/adamw")
SCHEDULE, RATES = reference("recipe/cosine_schedule")


@pytest.fixture
def model():
    with without_values():
        return keras_cait.CaiT(24, 2, 2, input_shape=(32, 32, 3))


@keras.saving.register_keras_serializable(package="tests")
class Rates(keras.optimizers.schedules.LearningRateSchedule):
    """The learning rates of a list, one per step; the last is kept."""

    def __init__(self, rates):
        self.rates = rates

    def __call__(self, step):
        step = ops.minimum(step, len(self.rates) - 1)
        return ops.take(ops.convert_to_tensor(self.rates), step)

    def get_config(self):
        return {"rates": self.rates}


def train(optimizer, start, gradients):
    """The variables after each step, by name."""
    # Keras keeps the moments in float32.
    variables = {
        name: keras.Variable(value, dtype="float32", name=name)
        for name, value in start.items()
    }
    optimizer.build(list(variables.values()))
    states = {name: [] for name in start}
    for step in range(len(next(iter(gradients.values())))):
        optimizer.apply(
            [
                ops.convert_to_tensor(gradients[name][step], "float32")
                for name in start
            ]
        )
        for name, variable in variables.items():
            states[name].append(ops.convert_to_numpy(variable))
    return states


@pytest.mark.parametrize("case", ADAMW["cases"], ids=lambda case: case["name"])
def test_adamw_is_the_references(case):
    """Also with gradients of the order of epsilon, as gammas have them."""
    runs = {
        name: ADAMW_RUNS[f"{case['name']}_{name}"] for name in case["params"]
    }
    states = train(
        AdamW(
            Rates(case["lr"]),
            case["params"]["kernel"]["weight_decay"],
            epsilon=case["eps"],
            global_clipnorm=case.get("clip_grad"),
        ),
        {name: run[0] for name, run in runs.items()},
        {n: ADAMW_RUNS[f"{case['name']}_{n}_grads"] for n in case["params"]},
    )
    for name, run in runs.items():
        np.testing.assert_allclose(states[name], run[1:], rtol=1e-5, atol=1e-7)


def test_adamw_corrects_its_moments_in_bfloat16():
    """With the same gradient at all steps, each moves by the rate."""
    variable = keras.Variable(1.0, dtype="bfloat16", name="bias")
    optimizer = AdamW(0.125)
    optimizer.build([variable])
    for step in range(1, 4):
        optimizer.apply([ops.ones((), "bfloat16")])
        np.testing.assert_allclose(float(variable), 1 - step / 8, atol=0.01)


@pytest.mark.parametrize("nesterov", [True, False])
def test_sgd_is_pytorchs(nesterov):
    """By the formula of `torch.optim.SGD`, with rates that change."""
    random = np.random.default_rng(0)
    rates, decay, momentum = [0.1, 0.2, 0.4, 0.1, 0.01], 0.05, 0.9
    start = {name: random.normal(size=3) for name in ("kernel", "bias")}
    gradients = {name: random.normal(size=(5, 3)) for name in start}
    states = train(
        SGD(Rates(rates), momentum, nesterov, decay), start, gradients
    )
    for name, value in start.items():
        buffer = 0.0
        for step, rate in enumerate(rates):
            gradient = gradients[name][step]
            if name == "kernel":
                gradient = gradient + decay * value
            buffer = momentum * buffer + gradient
            moved = gradient + momentum * buffer if nesterov else buffer
            value = value - rate * moved
            np.testing.assert_allclose(states[name][step], value, atol=1e-6)


@pytest.mark.parametrize("case", SCHEDULE["cases"], ids=lambda c: c["name"])
def test_schedule_meets_the_references_at_every_epoch(case):
    recorded = RATES[f"{case['name']}_lr_at_t"]
    peak = 5e-4 * case["global_batch"] / 512
    rate = WarmupCosine(peak, 7 * case["epochs"], 7 * 5)
    ours = [float(rate(7 * epoch)) for epoch in range(len(recorded))]
    np.testing.assert_allclose(ours, recorded, rtol=1e-4)


def test_the_rate_never_rises_after_the_warm_up():
    rate = WarmupCosine(2.5e-6, 100, 10, start=1e-5, floor=5e-6)
    rates = [float(rate(step)) for step in range(120)]
    np.testing.assert_allclose(rates, 2.5e-6, rtol=1e-5)


def test_decaying_weights_are_the_references():
    path = REFERENCE / "recipe/weight_decay_groups.json"
    recorded = json.loads(path.read_text())
    with without_values():
        model = keras_cait.CaiT_XXS24(weights=None)
    ours = {True: set(), False: set()}
    for weight in model.weights:
        if "seed_generator" not in weight.path:
            ours[decays(weight)].add(reference_name(weight.path))
    assert ours == {
        True: set(recorded["decay"]),
        False: set(recorded["no_decay"]),
    }


def test_layer_decay_slows_lower_layers(model):
    variables = model.trainable_variables
    factors = dict(
        zip(
            [variable.path for variable in variables],
            rate_factors(variables, 0.5),
            strict=True,
        )
    )
    for path, layers_below_the_head in (
        ("head/kernel", 0),
        ("class_attention_block_0/norm1/gamma", 1),
        ("class_token/class_token", 1),
        ("norm/gamma", 1),
        ("self_attention_block_1/mlp/fc1/bias", 2),
        ("self_attention_block_0/mlp/fc1/bias", 3),
        ("patch_embedding/proj/kernel", 4),
        ("position_embedding/position_embedding", 4),
    ):
        assert factors[path] == 0.5**layers_below_the_head


@pytest.mark.parametrize("kind", [AdamW, SGD])
def test_every_variable_has_its_rate_and_decay(kind):
    """The patches are two layers below the head of a model without blocks."""
    names = ("patch_embedding/kernel", "head/kernel", "head/bias")
    variables = []
    for name in names:
        scope, name = name.split("/")
        with keras.name_scope(scope):
            variables.append(keras.Variable(1.0, name=name))
    optimizer = kind(0.1, weight_decay=0.5, layer_decay=0.1)
    optimizer.build(variables)
    before = [ops.convert_to_numpy(v) for v in variables]
    optimizer.apply([ops.zeros(())] * 3)
    moved = [
        float(b - ops.convert_to_numpy(v))
        for b, v in zip(before, variables, strict=True)
    ]
    look = 1.9 if kind is SGD else 1.0  # Nesterov's
    expected = [0.05 * 0.01 * look, 0.05 * look, 0.0]
    np.testing.assert_allclose(moved, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("trainable", "learns"),
    [
        ("head", {"head"}),
        ("attention", {"head", "qkv", "query", "proj_logits", "proj"}),
    ],
)
def test_frozen_weights_do_not_learn(model, trainable, learns):
    count = len(model.trainable_variables)
    freeze(model, trainable)
    parts = {
        part
        for variable in model.trainable_variables
        for part in variable.path.split("/")
    }
    assert learns <= parts
    assert not {"mlp", "norm1", "position_embedding", "gamma"} & parts
    for name in ("norm", "self_attention_block_0"):
        layer = model.get_layer(name)
        layer.trainable = True  # as in all of Keras
        assert len(layer.trainable_weights) == len(layer.weights)
    model.trainable = True
    assert len(model.trainable_variables) == count
    freeze(model, trainable)
    freeze(model, "all")
    assert len(model.trainable_variables) == count


@pytest.mark.parametrize("is_sequential", [False, True])
def test_a_file_keeps_what_is_frozen(is_sequential, tmp_path):
    with keras.name_scope("scope"):
        model = keras_cait.CaiT(24, 1, 2, input_shape=(32, 32, 3), classes=5)
    if is_sequential:
        model.trainable = False
        model = keras.Sequential([model, keras.layers.Dense(5)])
    else:
        freeze(model, "attention")
    model.compile(AdamW(0.1), "mse")
    model.fit(np.ones((1, 32, 32, 3)), np.ones((1, 5)), verbose=0)
    model.save(tmp_path / "model.keras")
    with warnings.catch_warnings(action="error"):  # of a skipped optimizer
        loaded = keras.saving.load_model(tmp_path / "model.keras")
    learning = [v.trainable for v in model.weights]
    assert [v.trainable for v in loaded.weights] == learning
    assert loaded.optimizer.iterations == 1
    first = loaded.layers[0 if is_sequential else 2]
    assert not (first.trainable or first.trainable_weights)
    first.trainable = True
    assert first.trainable_weights


@pytest.mark.parametrize("index", [2, 4])
def test_a_layer_keeps_that_it_is_frozen(model, index):
    """So do files of functional models and clones, which copy each layer."""
    layer = model.layers[index]
    layer.trainable = False
    copy = type(layer).from_config(layer.get_config())
    copy.build(layer.input.shape)
    assert copy.weights and not any(v.trainable for v in copy.weights)


@pytest.mark.parametrize("is_sequential", [False, True])
def test_another_head_learns_and_statistics_do_not(is_sequential):
    body = keras_cait.CaiT(24, 1, 2, input_shape=(32, 32, 3), include_top=False)
    head = [keras.layers.BatchNormalization(), keras.layers.Dense(5)]
    if is_sequential:
        model = keras.Sequential([body, *head])
    else:
        x = body.output
        for layer in head:
            x = layer(x)
        model = keras.Model(body.input, x)
    every = {v.path for v in model.trainable_variables}
    own = {v.path for layer in head for v in layer.trainable_variables}
    for trainable, learns in (
        ("head", own),
        ("attention", own | {path for path in every if "/attention/" in path}),
        ("all", every),
    ):
        freeze(model, trainable)
        assert {v.path for v in model.trainable_variables} == learns


@pytest.mark.parametrize("kind", [AdamW, SGD])
def test_excluded_weights_do_not_decay(kind):
    model = keras_cait.CaiT(24, 1, 2, input_shape=(32, 32, 3))
    optimizer = kind(weight_decay=0.1)
    optimizer.exclude_from_weight_decay([model.get_layer("head").kernel])
    optimizer.build(model.trainable_variables)
    decaying = {
        variable.path
        for variable, decay in zip(
            model.trainable_variables, optimizer.decays, strict=True
        )
        if decay
    }
    assert "head/kernel" not in decaying
    assert "class_attention_block_0/mlp/fc1/kernel" in decaying


def test_wrong_arguments_are_named(model):
    with pytest.raises(ValueError, match="trainable='body'"):
        freeze(model, "body")
    with without_values():
        body = keras_cait.CaiT(
            24, 1, 2, input_shape=(32, 32, 3), include_top=False
        )
    with pytest.raises(ValueError, match="no layer named head"):
        freeze(body, "head")
    layers = [keras.layers.RandomFlip(), body, keras.layers.Dense(5)]
    unbuilt = keras.Sequential(layers)
    with pytest.raises(ValueError, match=r"no weights yet.*keras\.Input"):
        freeze(unbuilt, "head")
    other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5)])
    with pytest.raises(ValueError, match="no layers of CaiT"):
        freeze(other, "attention")
    for optimizer, argument in (
        (AdamW, "layer_decay"),
        (AdamW, "weight_decay"),
        (SGD, "weight_decay"),
        (AdamW, "beta_1"),
        (AdamW, "beta_2"),
    ):
        for value in (-1, "1"):
            with pytest.raises(ValueError, match=f"{argument}={value!r}"):
                optimizer(**{argument: value})
    for steps, warmup_steps in ((0, 0), (10, -1)):
        with pytest.raises(ValueError, match=f"Received: steps={steps}, w"):
            WarmupCosine(1e-3, steps, warmup_steps)
