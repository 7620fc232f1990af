"""Each row of docs/tensorflow-addons.md, on numbers recorded from Addons."""

import math
import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.helpers.reference import REFERENCE, reference
from training.data import randaugment
from training.data.augmentation import erasing_box

DOCUMENT = REFERENCE.parent.parent / "docs/tensorflow-addons.md"
NOW = {}
for block in re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.S):
    exec(block, NOW)

PARAMETERS = ("kernel", "bias", "gamma")
STEPS = 20
_, OPTIMIZERS = reference("tfa/optimizers")
_, STOCHASTIC_DEPTH = reference("tfa/stochastic_depth")
IMAGES, PIXELS = reference("tfa/image")
FILL = tf.constant([124, 116, 104], tf.uint8)


def recorded(run, parameter, suffix=""):
    return OPTIMIZERS[f"{run}_{parameter}{suffix}"]


def train(optimizer, after_step=None):
    """The variables after each step: `{parameter: (1 + STEPS, ...)}`."""
    variables = [
        keras.Variable(recorded("adamw", name)[0], name=name)
        for name in PARAMETERS
    ]
    optimizer.build(variables)
    states = [[np.array(v) for v in variables]]
    for step in range(STEPS):
        gradients = [OPTIMIZERS[f"{name}_grads"][step] for name in PARAMETERS]
        optimizer.apply(list(map(tf.constant, gradients)), variables)
        if after_step:
            after_step(step, variables)
        states.append([np.array(v) for v in variables])
    return by_parameter(states)


def by_parameter(states):
    columns = zip(*states, strict=True)
    return dict(zip(PARAMETERS, map(np.stack, columns), strict=True))


def assert_repeats(ours, run, suffix=""):
    for name in PARAMETERS:
        expected = recorded(run, name, suffix)
        assert np.ptp(expected, axis=0).max() > 0
        np.testing.assert_allclose(ours[name], expected, rtol=1e-6, atol=1e-6)


def test_adamw():
    optimizer = keras.optimizers.AdamW(1e-3, weight_decay=5e-5 / 1e-3)
    assert_repeats(train(optimizer), "adamw")


def test_adamw_with_exclusions():
    optimizer = keras.optimizers.AdamW(1e-3, weight_decay=0.05, epsilon=1e-8)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma"])
    assert_repeats(train(optimizer), "adamw_excluded")


def test_lamb():
    optimizer = keras.optimizers.Lamb(5e-3, epsilon=1e-6)
    assert_repeats(train(optimizer), "lamb_plain")


def lamb(parameter, decay_inside, decay_apart, scaled):
    """LAMB with both ways to decay, in float64."""
    rate, epsilon = 5e-3, 1e-6
    value = recorded("lamb", parameter)[0].astype("float64")
    first, second, states = 0.0, 0.0, [value]
    for step in range(STEPS):
        gradient = OPTIMIZERS[f"{parameter}_grads"][step].astype("float64")
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        update = first / (1 - 0.9 ** (step + 1))
        update /= np.sqrt(second / (1 - 0.999 ** (step + 1))) + epsilon
        update += decay_inside * value
        value = value - rate * decay_apart * value
        if scaled:
            update *= np.linalg.norm(value) / np.linalg.norm(update)
        value = value - rate * update
        states.append(value)
    return np.stack(states)


@pytest.mark.parametrize("parameter", PARAMETERS)
def test_lamb_with_decay_differs_as_explained(parameter):
    decayed = parameter == "kernel"
    optimizer = keras.optimizers.Lamb(5e-3, weight_decay=0.02, epsilon=1e-6)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma"])
    ours = train(optimizer)[parameter]
    theirs = recorded("lamb", parameter)
    np.testing.assert_allclose(
        theirs, lamb(parameter, 0.02 * decayed, 0, scaled=decayed), atol=2e-6
    )
    np.testing.assert_allclose(
        ours, lamb(parameter, 0, 0.02 * decayed, scaled=True), atol=2e-6
    )
    assert np.abs(ours - theirs).max() > 1e-3


@pytest.mark.parametrize(
    "run, momentum",
    [
        ("ema", lambda step: 0.9),
        ("ema_dynamic", lambda step: min(0.99996, (1 + step) / (10 + step))),
        ("ema_start_step", lambda step: 0.9 if step >= 5 else 0.0),
    ],
)
def test_moving_average(run, momentum):
    averages = [
        keras.Variable(recorded(run, name, "_average")[0])
        for name in PARAMETERS
    ]
    states = [[np.array(a) for a in averages]]

    def average(step, variables):
        NOW["update_average"](averages, variables, momentum(step))
        states.append([np.array(a) for a in averages])

    train(keras.optimizers.SGD(0.1), average)
    assert_repeats(by_parameter(states), run, "_average")


def test_moving_average_of_keras_differs_by_its_start():
    optimizer = keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.9)
    variables = train(optimizer)
    kept = {name: np.copy(variables[name]) for name in PARAMETERS}
    averages = [keras.Variable(kept[name][-1]) for name in PARAMETERS]
    optimizer.finalize_variable_values(averages)
    for name, average in zip(PARAMETERS, averages, strict=True):
        start, first = kept[name][:2]
        np.testing.assert_allclose(
            average - 0.9**STEPS * (first - start),
            recorded("ema", name, "_average")[-1],
            rtol=1e-6,
            atol=1e-6,
        )
        if name == "kernel":
            assert np.abs(0.9**STEPS * (first - start)).max() > 1e-3


@pytest.mark.parametrize("survival", [0.2, 0.5, 0.8, 1.0])
def test_stochastic_depth(survival):
    shortcut, residual = (
        tf.constant(STOCHASTIC_DEPTH[name]) for name in ("shortcut", "residual")
    )
    dropout = keras.layers.Dropout(
        1 - survival, noise_shape=(None, 1, 1), seed=0
    )
    np.testing.assert_allclose(
        shortcut + dropout(survival * residual, training=False),
        STOCHASTIC_DEPTH[f"inference_p{survival}"],
        atol=1e-6,
    )
    many = tf.ones((5000, 3, 5))
    kept = np.array(dropout(survival * many, training=True))
    # Each image as a whole is either as in training with Addons, or gone.
    assert (kept == kept[:, :1, :1]).all()
    np.testing.assert_allclose(kept[kept != 0], 1, atol=1e-6)
    assert kept.mean() == pytest.approx(survival, abs=0.03)


def numbers(key):
    return [float(x) for x in re.findall(r"-?\d+(?:\.\d+)?", key)]


def now(key, image):
    """What replaces the recorded call, by its name."""
    name, values = key.split("_")[0], numbers(key)
    interpolation = key.rpartition("_")[2]
    if name == "rotate":
        (degrees,) = values
        if interpolation == "reflect":
            fill = {"interpolation": "bilinear", "fill_mode": "reflect"}
        else:
            fill = {"interpolation": interpolation, "fill_value": 116.0}
        return NOW["rotate"](image, math.radians(degrees), **fill)
    if name == "translate":
        x, y = values
        matrix = (1, 0, -x, 0, 1, -y)
        if "xy" in key:
            return NOW["transform_filled"](image, matrix, FILL)
        return NOW["transform"](image, matrix, interpolation)
    if name == "shear":
        (level,) = values
        matrix = (
            (1, level, 0, 0, 1, 0) if "_x_" in key else (1, 0, 0, level, 1, 0)
        )
        return NOW["transform_filled"](image, matrix, FILL)
    if name == "cutout":
        height, width, y, x = map(int, values)
        return NOW["cutout"](image, (height, width), (y, x), 116)
    image = tf.cast(image, tf.float32)
    if name == "sharpness":
        return randaugment.sharpness(image, values[0])
    return randaugment.equalize(image)


@pytest.mark.parametrize("call", IMAGES["calls"])
def test_pictures(call):
    compared = 0
    for i in range(3):
        if f"image{i}_{call}" not in PIXELS:
            continue
        ours = now(call, tf.constant(PIXELS[f"image{i}"])).numpy()
        expected = PIXELS[f"image{i}_{call}"].astype("int32")
        difference = np.abs(ours - expected)
        if call.startswith("sharpness"):
            assert difference.max() <= 2
        elif call.startswith("rotate"):
            right_angle = call == "rotate_90_bilinear"
            assert difference.max() <= 1
            assert np.mean(difference > 0) < (0.2 if right_angle else 1e-3)
        else:
            np.testing.assert_array_equal(ours, expected)
        compared += 1
    assert compared >= 2


@pytest.mark.parametrize("factor", [0.1, 0.5, 1.9])
def test_sharpness_differs_as_explained(factor):
    image = PIXELS["image0"].astype("float32")
    inner = image[1:-1, 1:-1]
    windows = np.lib.stride_tricks.sliding_window_view(image, (3, 3), (0, 1))
    smooth = np.floor((windows.sum((-1, -2)) + 4 * inner) / 13 + 1e-4)
    expected = np.clip(smooth + factor * (inner - smooth), 0, 255).round()
    theirs = PIXELS[f"image0_sharpness_{factor}"][1:-1, 1:-1]
    # But for sums that are multiples of 13, and in float32 just below.
    assert np.mean(theirs != expected) < 0.005


def test_random_erasing_reaches_places_that_random_cutout_does_not():
    last_top, last_left = 20 - 8, 30 - 10
    places = PIXELS["random_cutout_top_left"].max(axis=0)
    assert places.tolist() == [last_top - 1, last_left - 1]
    draws = tf.constant([[0.5, 0.5, 0.999, 0.999]])
    top, left, height, width = erasing_box(20, 30, draws).numpy()
    assert (top + height, left + width) == (20, 30)
