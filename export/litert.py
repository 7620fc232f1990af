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
    """How many operations a file has, and in how many parts it runs.

    Args:
        path: path of a `.tflite` file.

    Returns:
        Pair of ints. One part is XNNPACK's, of the whole graph. More parts are
        cut by operations that it does not take, which are one part together.
    """
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    nodes = interpreter._get_ops_details()  # what XNNPACK took is still there
    parts = [node for node in nodes if node["op_name"] == "DELEGATE"]
    ours = [node for node in nodes if node["op_name"] != "DELEGATE"]

    def tensors(nodes, key):
        return {tensor for node in nodes for tensor in node[key]}

    made = tensors(parts, "outputs")
    answers = {each["index"] for each in interpreter.get_output_details()}
    needed = tensors(parts, "inputs") & tensors(ours, "outputs") | answers
    return len(ours), len(parts) + (not needed <= made)
