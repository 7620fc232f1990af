"""The GPU kernel of talking heads, interpreted by Pallas on the CPU."""

import keras
import numpy as np
import pytest

if keras.backend.backend() != "jax":
    pytest.skip("a kernel for JAX", allow_module_level=True)

import jax
from jax import numpy as jnp

from keras_cait import fused_mixing
from keras_cait.layers import TalkingHeadsAttention
from keras_cait.models import VARIANTS


def attention(heads, tokens, dtype="float32"):
    """A layer whose scores are of order 1, its weights, and its inputs."""
    layer = TalkingHeadsAttention(heads, dtype=dtype)
    width = 8 * heads
    layer.build((2, tokens, width))
    weights = {}
    for weight in layer.weights:
        scale = weight.shape[0] ** -0.5 if len(weight.shape) == 2 else 0.1
        values = np.random.normal(0, scale, weight.shape)
        weights[weight.path.partition("/")[2]] = values.astype("float32")
    inputs = np.random.normal(size=(2, tokens, width)).astype("float32")

    def call(weights, inputs):
        values = [weights[w.path.partition("/")[2]] for w in layer.weights]
        return layer.stateless_call(values, [], inputs)[0]

    return call, weights, inputs


def outputs_and_gradients(call, weights, inputs):
    """The outputs, and the gradients of the inputs and of each weight."""

    @jax.jit
    def run(weights, inputs):
        outputs, pull = jax.vjp(call, weights, inputs)
        by_outputs = jnp.cos(jnp.arange(outputs.size)).reshape(outputs.shape)
        return outputs, *pull(by_outputs.astype(outputs.dtype))

    outputs, by_weights, by_inputs = run(weights, inputs)
    found = {"outputs": outputs, "inputs": by_inputs, **by_weights}
    # It cancels in the softmax: the layer's gradient is rounding.
    del found["proj_logits/bias"]
    return {key: np.asarray(x, "float32") for key, x in found.items()}


def assert_same(found, expected):
    for key, b in expected.items():
        # Sums of up to 2 * 37 * 37 products of order 1 in another order.
        np.testing.assert_allclose(
            found[key], b, rtol=1e-5, atol=2e-6 * np.ptp(b), err_msg=key
        )


@pytest.fixture
def interpreted(monkeypatch):
    """The kernel computes the layer, without a GPU."""
    monkeypatch.setattr(fused_mixing, "applies", lambda scores: True)
    monkeypatch.setattr(
        fused_mixing,
        "_run",
        lambda kernel, otherwise, arguments: kernel(*arguments, interpret=True),
    )


# Heads that fill the columns and heads that do not; keys in one part and in
# two; rows that do not divide into tiles and programs.
@pytest.mark.parametrize("heads, tokens", [(6, 37), (16, 9)])
def test_kernel_equals_the_layer(heads, tokens, request):
    arguments = attention(heads, tokens)
    expected = outputs_and_gradients(*arguments)
    request.getfixturevalue("interpreted")
    assert_same(outputs_and_gradients(*arguments), expected)


def test_kernel_is_as_exact_as_the_layer_in_bfloat16(request):
    exact, weights, inputs = attention(4, 9)
    layer, *_ = attention(4, 9, "mixed_bfloat16")
    expected = outputs_and_gradients(exact, weights, inputs)
    usual = outputs_and_gradients(layer, weights, inputs)
    request.getfixturevalue("interpreted")
    found = outputs_and_gradients(layer, weights, inputs)
    for key, b in expected.items():
        limit = 1.5 * np.abs(usual[key] - b).max()
        assert np.abs(found[key] - b).max() <= limit, key


@pytest.mark.parametrize("name", ["XS24", "M36"])
def test_kernel_compiles_for_a_gpu(name):
    """As far as it can without one: Pallas accepts every operation."""
    heads = VARIANTS[name].num_heads
    scores = jax.ShapeDtypeStruct((heads, 2, 196, 196), jnp.bfloat16)
    square = jax.ShapeDtypeStruct((heads, heads), jnp.bfloat16)
    bias = jax.ShapeDtypeStruct((heads,), jnp.bfloat16)

    def step(*arguments):
        outputs, pull = jax.vjp(fused_mixing.mix, *arguments)
        return outputs, pull(outputs)

    traced = jax.jit(step).trace(scores, square, square, bias)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("triton") == 2
    assert "triton" not in traced.lower(lowering_platforms=("cpu",)).as_text()


def test_without_a_gpu_the_layer_takes_its_usual_path(monkeypatch):
    scores = jnp.zeros((4, 5, 196, 196), jnp.bfloat16)
    assert not fused_mixing.applies(scores)
    monkeypatch.setattr(fused_mixing, "_has_gpu", lambda: True)
    assert fused_mixing.applies(scores)
    assert not fused_mixing.applies(scores.astype("float32"))
    assert not fused_mixing.applies(scores[:, :4])  # launches would dominate
    assert not fused_mixing.applies(jnp.zeros((17, 5, 196, 196), jnp.bfloat16))


def test_a_program_on_the_cpu_of_a_machine_with_a_gpu(monkeypatch):
    arguments = attention(4, 9)
    expected = outputs_and_gradients(*arguments)
    monkeypatch.setattr(fused_mixing, "applies", lambda scores: True)
    assert_same(outputs_and_gradients(*arguments), expected)
