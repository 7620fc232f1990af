"""Fine-tuning by `fit`: head first, all precisions, XLA and many devices."""

import keras
import numpy as np
import pytest

import keras_cait
from tests.helpers.fit import (
    arrays,
    data,
    difference,
    tiny,
    train,
    train_on_many_devices,
)

DISTRIBUTIONS = {
    "tensorflow": ["mirrored"],
    "jax": ["data_2", "data_8", "model_4"],
}[keras.backend.backend()]


@pytest.fixture(scope="module")
def one():
    return arrays(train())


@pytest.mark.parametrize(
    ("dtype", "jit_compile"),
    [
        ("mixed_float16", "auto"),
        ("mixed_bfloat16", "auto"),
        ("float32", True),
    ],
)
def test_precision_and_xla_give_nearly_the_same_weights(
    dtype, jit_compile, one
):
    limit = 1e-4 if dtype == "float32" else 0.05
    assert difference(one, arrays(tiny())) > 2 * limit
    assert difference(arrays(train(dtype, jit_compile)), one) < limit


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    return train_on_many_devices(tmp_path_factory.mktemp("devices"))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_many_devices_give_the_same_weights(distribution, many, one):
    assert difference(many[distribution], one) < 1e-5


def test_head_first_then_all(tmp_path):
    images, labels = data()
    model = tiny()
    before = arrays(model)
    loss = "sparse_categorical_crossentropy"
    keras_cait.freeze(model, trainable="head")
    model.compile(keras_cait.AdamW(1e-2, use_ema=True), loss)
    first = model.fit(images, labels, verbose=0).history["loss"][0]
    model.fit(images, labels, verbose=0)  # goes on from the averages
    moved = {
        path
        for path, array in arrays(model).items()
        if not np.array_equal(array, before[path])
    }
    assert moved == {"head/kernel", "head/bias"}

    keras_cait.freeze(model, trainable="all")
    model.compile(keras_cait.AdamW(1e-2, layer_decay=0.5), loss)
    history = model.fit(images, labels, epochs=8, verbose=0).history
    assert history["loss"][-1] < first
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.optimizer.get_config() == model.optimizer.get_config()
    assert len(loaded.optimizer.variables) == len(model.optimizer.variables)
    for ours, theirs in zip(
        loaded.optimizer.variables, model.optimizer.variables, strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
