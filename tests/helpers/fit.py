"""A tiny CaiT that learns by `fit`, also as a process with several devices."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_cait
from tests.helpers.models import randomise

DEVICES = 8  # of JAX; TensorFlow has two


def data():
    """Images, and labels that they tell."""
    labels = np.arange(48) % 4
    images = np.random.default_rng(0).uniform(0, 255, (48, 16, 16, 3))
    images[..., 0] = 80 * labels[:, None, None]
    return images.astype("float32"), labels


def tiny(dtype=None):
    """A CaiT with weights of order 1."""
    return randomise(
        keras_cait.CaiT(
            16,
            1,
            2,
            patch_size=8,
            class_attention_depth=1,
            input_shape=(16, 16, 3),
            classes=4,
            dtype=dtype,
        )
    )


def arrays(model):
    return {
        weight.path: keras.ops.convert_to_numpy(weight)
        for weight in model.weights
        if "seed_generator" not in weight.path
    }


def train(dtype=None, jit_compile="auto"):
    """A tiny CaiT after three steps."""
    model = tiny(dtype)
    # A large epsilon: where only rounding is left of a gradient, as in biases
    # that the softmax cancels, Adam would make a whole step of it.
    optimizer = keras_cait.AdamW(
        keras_cait.WarmupCosine(1e-2, steps=6, warmup_steps=2),
        epsilon=1e-3,
        layer_decay=0.5,
        global_clipnorm=0.1,
    )
    model.compile(
        optimizer, "sparse_categorical_crossentropy", jit_compile=jit_compile
    )
    model.fit(*data(), batch_size=16, shuffle=False, verbose=0)
    return model


def difference(ours, theirs):
    """Largest difference of weights, relative to the largest of each."""
    assert ours.keys() == theirs.keys()
    return max(
        np.abs(ours[path] - theirs[path]).max() / np.abs(theirs[path]).max()
        for path in theirs
    )


def distributions():
    """The distributions of the backend, by name."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        (cpu,) = tf.config.list_physical_devices("CPU")
        device = tf.config.LogicalDeviceConfiguration()
        tf.config.set_logical_device_configuration(cpu, [device] * 2)
        strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
        return {"mirrored": strategy}
    from keras.distribution import DataParallel, DeviceMesh, ModelParallel

    devices = keras.distribution.list_devices()
    assert len(devices) == DEVICES
    mesh = DeviceMesh((2, 4), ["batch", "model"], devices)
    layouts = keras_cait.layout_map(mesh)
    model = ModelParallel(layout_map=layouts, batch_dim_name="batch")
    return {
        "data_2": DataParallel(devices=devices[:2]),
        "data_8": DataParallel(devices=devices),
        "model_4": model,
    }


def train_on_many_devices(folder):
    """The weights that each distribution gives, by its name.

    Devices are made before anything else, so they need a process.
    """
    environment = {
        **os.environ,
        "KERAS_BACKEND": keras.backend.backend(),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES}",
    }
    subprocess.run(
        [sys.executable, "-m", __name__, folder], env=environment, check=True
    )
    return {path.stem: dict(np.load(path)) for path in folder.glob("*.npz")}


def main(folder):
    for name, distribution in distributions().items():
        with distribution.scope():
            model = train()
            np.savez(folder / name, **arrays(model))
    if name == "mirrored":
        model.compile(model.optimizer, "mse", jit_compile=True)
        with pytest.raises(ValueError, match="Omit jit_compile"):
            model.make_train_function()
    if name == "model_4":
        kernel = model.self_attention_blocks[0].mlp.fc1.kernel
        moments = [
            variable
            for variable in model.optimizer.variables
            if "mlp_fc1_kernel" in variable.path
        ]
        assert len(moments) == 4  # two of each block
        # Each device has a quarter: 16 of 64 columns.
        for variable in (kernel, *moments):
            shards = variable.value.sharding.shard_shape(variable.shape)
            assert shards == (16, 16), variable.path


if __name__ == "__main__":
    main(Path(sys.argv[1]))
