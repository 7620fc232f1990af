"""The folded inference graph matches the Keras model."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_cait
from export.inference_graph import InferenceModel
from tests.helpers.models import randomise

HALF = keras.layers.Rescaling(0.5)(keras.Input((32, 32, 3)))


def outputs(model, images):
    """The outputs of `InferenceModel`, computed by the Keras model."""
    logits = keras_cait.CaiT.from_config(
        {**model.get_config(), "classifier_activation": None}
    )
    logits.set_weights(model.get_weights())
    embedding = keras.Model(model.input, model.get_layer("head").input)
    return {
        "logits": logits(images),
        "probabilities": model(images),
        "embedding": embedding(images),
        "attention": keras_cait.class_attention_maps(model, images),
    }


def assert_close(found, expected, relative):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        value = np.asarray(value)
        assert found[name].dtype == tf.float32
        assert found[name].shape == value.shape
        difference = np.abs(found[name] - value).max() / np.abs(value).max()
        assert difference <= relative, name


@pytest.mark.parametrize("parts", [1, 2, 3, 16])
def test_all_outputs_match_the_keras_model(small_model, images, parts):
    assert_close(
        InferenceModel(small_model)(images, parts=parts),
        outputs(small_model, images),
        relative=1e-5,
    )


@pytest.mark.parametrize(
    "arguments",
    [
        {"depth": 24},
        {"class_attention_depth": 3, "mlp_ratio": 2.5},
        {"input_shape": (32, 64, 3)},
        {"grid_size": (3, 5)},
        {"dtype": "mixed_bfloat16"},
        {"classifier_activation": "sigmoid"},
        {"classifier_activation": "sigmoid", "classes": 1},
    ],
    ids=str,
)
def test_models_of_any_shape(arguments):
    """Also of positions of another grid, and trained in mixed precision."""
    config = {"depth": 2, "input_shape": (32, 32, 3), "classes": 5}
    model = randomise(
        keras_cait.CaiT(48, num_heads=4, patch_size=8, **config | arguments)
    )
    images = np.random.default_rng(0).integers(
        0, 256, (3, *model.image_shape), "uint8"
    )
    found = InferenceModel(model)(images)
    if "dtype" in arguments:
        full = keras_cait.CaiT.from_config(
            {**model.get_config(), "dtype": "float32"}
        )
        full.set_weights(model.get_weights())
        model = full
    assert_close(found, outputs(model, images), relative=1e-5)


def test_bfloat16_is_close_and_half_as_large(small_model, images):
    model = InferenceModel(small_model, "bfloat16")
    assert_close(model(images), outputs(small_model, images), relative=0.1)
    halves = [v for v in model.variables if v.dtype == tf.bfloat16]
    counts = [v.shape.num_elements() for v in halves]
    assert sum(counts) > 0.5 * small_model.count_params()


def test_an_empty_batch(small_model):
    found = InferenceModel(small_model)(np.zeros((0, 32, 32, 3), "uint8"))
    shapes = {name: tuple(value.shape) for name, value in found.items()}
    assert shapes == {
        "logits": (0, 5),
        "probabilities": (0, 5),
        "embedding": (0, 24),
        "attention": (0, 2, 2, 4, 4),
    }


@pytest.mark.parametrize("output", ["logits", "embedding"])
def test_graph_is_fast_everywhere(small_model, output):
    """Rank 4 at most, no einsum, gather or broadcast as an operation."""
    model = InferenceModel(small_model)
    graph = tf.function(
        lambda images: model(images)[output]
    ).get_concrete_function(tf.TensorSpec((1, 32, 32, 3)))
    used, waiting = set(), list(graph.graph.outputs)
    while waiting:
        operation = waiting.pop().op
        used.add(operation)
        waiting += [x for x in operation.inputs if x.op not in used]
    kinds = {operation.type for operation in used}
    assert "MatMul" in kinds
    assert not kinds & {"Einsum", "GatherV2", "BroadcastTo", "StridedSlice"}
    for operation in used:
        for tensor in operation.outputs:
            if tensor.dtype == tf.float32:
                assert tensor.shape.rank <= 4, operation
                assert tensor.shape.is_fully_defined(), operation


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"include_top": False}, "include_top=False"),
        ({"include_preprocessing": False}, "include_preprocessing=False"),
        ({"pooling": "avg"}, "pooling='avg'"),
        ({"input_shape": (None, None, 3)}, "such as --image-size 224"),
        ({"input_shape": (None, 32, 3), "grid_size": (4, 4)}, "-size 32"),
        ({"input_shape": (32, 32, 4)}, "RGB"),
        ({"classifier_activation": "relu"}, "'relu' and classes=1000"),
        ({"classifier_activation": None, "classes": 1}, "None and classes=1"),
        ({"input_tensor": HALF}, "layers before its images"),
    ],
    ids=str,
)
def test_other_models_are_refused(arguments, message):
    config = {"patch_size": 8, "input_shape": (32, 32, 3)} | arguments
    model = keras_cait.CaiT(24, 1, 2, **config)
    with pytest.raises(ValueError, match=message):
        InferenceModel(model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: model.quantize("int8"), "quantize"),
        (lambda model: model.get_layer("head").enable_lora(1), "LoRA"),
    ],
)
def test_changed_kernels_are_refused(change, message, small_model, monkeypatch):
    # Keras collects garbage after every kernel, which takes seconds.
    monkeypatch.setattr("gc.collect", lambda: 0)
    change(small_model)
    with pytest.raises(ValueError, match=message):
        InferenceModel(small_model)


def test_an_unknown_precision_is_refused(small_model):
    with pytest.raises(ValueError, match="float32, bfloat16"):
        InferenceModel(small_model, "float16")
