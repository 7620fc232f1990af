"""All numbers of a training run, and their comparison."""

import numpy as np
import tensorflow as tf


def read_state(folder):
    """All numbers that a run's newest checkpoint holds, by name."""
    path = tf.train.latest_checkpoint(folder / "checkpoints")
    reader = tf.train.load_checkpoint(path)
    return {
        key.removesuffix("/.ATTRIBUTES/VARIABLE_VALUE"): reader.get_tensor(key)
        for key in reader.get_variable_to_shape_map()
        if not key.startswith(("_CHECKPOINTABLE", "save_counter"))
    }


def assert_bit_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], name)
