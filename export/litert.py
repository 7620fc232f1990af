"""LiteRT: one `.tflite` file of static shape for phones and browsers."""

import tempfile

import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from tensorflow.python.framework.convert_to_constants import (
    convert_variables_to_constants_v2 as freeze,
)


def convert(model):
    """Converts a model to the bytes of a float32 `.tflite` file.

    The batch is 1, every shape static and every weight a constant, so that
    XNNPACK takes the graph and packs its weights once.

    Args:
        model: `export.inference.InferenceModel`.

    Returns:
        bytes. Input `images`, float32 `(1, height, width, channels)` in
        0...255; output `probabilities`, float32 `(1, classes)`.
    """
    images = tf.TensorSpec((1, *model.image_shape), tf.float32, "images")
    probabilities = tf.function(lambda images: model(images)["probabilities"])
    frozen = freeze(probabilities.get_concrete_function(images))

    # By way of a SavedModel, which keeps the names of input and output.
    module = tf.Module()
    module.classify = tf.function(
        lambda images: {"probabilities": frozen(images)[0]}, [images]
    )
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, module.classify)
        return tf.lite.TFLiteConverter.from_saved_model(folder).convert()


def operations(path):
    """How many operations a file has, and in how many parts XNNPACK runs it.

    Args:
        path: path of a `.tflite` file.

    Returns:
        Pair of ints. One part is the whole graph; more are cut by operations
        that XNNPACK does not take.
    """
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    names = [each["op_name"] for each in interpreter._get_ops_details()]
    partitions = names.count("DELEGATE")
    return len(names) - partitions, partitions
