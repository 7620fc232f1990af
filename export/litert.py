"""LiteRT: one `.tflite` file of static shape for phones and browsers."""

import gc
import tempfile
from copy import copy

import numpy as np
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

from export.litert_runner import DEFAULT

SIGNATURES = ("embedding", "attention")


def convert(model, softmax=True, batch_size=1, signatures=()):
    """Converts a model to the bytes of a float32 `.tflite` file.

    Every shape is static and every weight a constant, so that XNNPACK takes
    the graph whole and packs its weights once. All signatures share them.

    Args:
        model: `export.inference_graph.InferenceModel`.
        softmax: bool. Whether the softmax is part of the graph.
        batch_size: int > 0.
        signatures: which of `"embedding"` and `"attention"` can be asked for
            besides the classes.

    Returns:
        bytes. The input of each signature is `images`, float32 RGB in
        0...255, `(batch_size, height, width, 3)`. The first signature,
        `serving_default`, answers `probabilities`, or without softmax
        `logits`, `(batch_size, classes)`; `embedding` answers `embedding`,
        `(batch_size, embed_dim)`; `attention` answers as `serving_default`
        and `attention`, of the class token to each patch, one block after the
        other, `(batch_size, class_attention_depth * heads, rows, columns)`.
        All are float32.

    Raises:
        ValueError: an argument is out of its range.

    Example:
    >>> tflite = convert(InferenceModel(model))  # doctest: +SKIP
    """
    if not set(signatures) <= set(SIGNATURES):
        raise ValueError(
            f"signatures must be of {', '.join(SIGNATURES)}. Received: "
            f"{', '.join(signatures)}."
        )
    if batch_size < 1:
        raise ValueError(
            f"batch_size must be at least 1. Received: {batch_size}."
        )
    images = tf.TensorSpec(
        (batch_size, *model.image_shape), tf.float32, "images"
    )
    scores = "probabilities" if softmax else "logits"
    names = {
        DEFAULT: [scores],
        "embedding": ["embedding"],
        "attention": [scores, "attention"],
    }
    functions = {
        signature: function(model, images, names[signature])
        for signature in (DEFAULT, *signatures)
    }
    # By way of a SavedModel, which keeps the names of inputs and outputs. The
    # converter makes constants of its variables; as constants of the graph they
    # would be there once for each signature, and twice as many times in memory.
    module = tf.Module()
    module.model, module.functions = model, functions
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, functions)
        del model, module, functions  # The weights are on the disk.
        gc.collect()
        converter = tf.lite.TFLiteConverter.from_saved_model(
            folder, signature_keys=[DEFAULT, *signatures]
        )
        tflite = converter.convert()
    return default_first(tflite) if signatures else tflite


def function(model, images, names):
    """Some answers of a model to a batch of images."""

    def answers(images):
        outputs = dict(model(images))
        _, *blocks, rows, columns = outputs["attention"].shape
        shape = (images.shape[0], blocks[0] * blocks[1], rows, columns)
        outputs["attention"] = tf.reshape(outputs["attention"], shape)
        return {name: outputs[name] for name in names}

    return tf.function(answers, [images])


def default_first(tflite):
    """Puts `serving_default` before the other signatures.

    The converter sorts them by name, and what knows nothing of signatures
    takes the first graph.
    """
    model = flatbuffer_utils.read_model_from_bytearray(bytearray(tflite))
    order = sorted(
        model.signatureDefs,
        key=lambda one: one.signatureKey.decode() != DEFAULT,
    )
    model.subgraphs = [model.subgraphs[one.subgraphIndex] for one in order]
    for index, signature in enumerate(order):
        signature.subgraphIndex = index
    model.signatureDefs = order
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def take_uint8(tflite):
    """Lets a `.tflite` file take uint8 instead of float32 pixels.

    XNNPACK has no cast of integers. So the input is declared as quantised, in
    steps of 1, and an operation that it has dequantises it.

    Args:
        tflite: bytes, of a file of `convert`, quantised or not.

    Returns:
        bytes.
    """
    model = flatbuffer_utils.read_model_from_bytearray(bytearray(tflite))
    code = schema.OperatorCodeT()
    code.builtinCode = schema.BuiltinOperator.DEQUANTIZE
    code.deprecatedBuiltinCode = code.builtinCode
    code.version = 1
    model.operatorCodes.append(code)
    for graph in model.subgraphs:
        (images,) = graph.inputs
        pixels = copy(graph.tensors[images])
        pixels.name = b"images"
        pixels.type = schema.TensorType.UINT8
        pixels.quantization = schema.QuantizationParametersT()
        pixels.quantization.scale = np.ones(1, "float32")
        pixels.quantization.zeroPoint = np.zeros(1, "int64")
        graph.tensors.append(pixels)
        dequantize = schema.OperatorT()
        dequantize.opcodeIndex = len(model.operatorCodes) - 1
        dequantize.inputs = np.array([len(graph.tensors) - 1], "int32")
        dequantize.outputs = np.array([images], "int32")
        graph.operators.insert(0, dequantize)
        graph.inputs = dequantize.inputs
    for signature in model.signatureDefs:
        graph = model.subgraphs[signature.subgraphIndex]
        signature.inputs[0].tensorIndex = int(graph.inputs[0])
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))
