"""Converts models to `.tflite` files for phones and browsers."""

import gc
import tempfile
from collections.abc import Callable, Sequence
from copy import copy
from typing import get_args

import numpy as np
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils

from export.inference_graph import InferenceModel
from export.options import ExtraSignature
from keras_cait.litert import SIGNATURE


def convert(
    model: InferenceModel,
    softmax: bool = True,
    batch_size: int = 1,
    signatures: Sequence[ExtraSignature] = (),
) -> bytes:
    """Converts a model to a float32 `.tflite` file.

    All shapes are static and all weights constant, which lets XNNPACK run the
    whole graph and pack its weights once. All signatures share the weights.

    Args:
        model: the inference graph.
        softmax: whether the softmax, or sigmoid, is part of the graph.
        batch_size: int > 0. Number of images per call.
        signatures: signatures to add to `serving_default`.

    Returns:
        Content of the file. The input of each signature is `images`, float32
        RGB in 0...255, `(batch_size, height, width, 3)`. All outputs are
        float32. `serving_default` comes first and returns `probabilities`, or
        `logits` without softmax, `(batch_size, classes)`. `embedding` returns
        `embedding`, `(batch_size, embed_dim)`. `attention` returns the output
        of `serving_default` and `attention` from the class token to each
        patch, the heads of all blocks in order,
        `(batch_size, class_attention_depth * heads, rows, columns)`.

    Raises:
        ValueError: an argument is out of range, or the logits are those of a
            sigmoid.

    Example:
    >>> tflite = convert(InferenceModel(model))  # doctest: +SKIP
    """
    choices = get_args(ExtraSignature)
    if not set(signatures) <= set(choices):
        raise ValueError(
            f"signatures must be among {', '.join(choices)}. Got "
            f"{', '.join(signatures)}."
        )
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1. Got {batch_size}.")
    if model.is_sigmoid and not softmax:
        raise ValueError(
            "Programs apply softmax to the logits of a file. Got a model with "
            'classifier_activation="sigmoid". Omit --logits.'
        )
    images = tf.TensorSpec(
        (batch_size, *model.image_size, 3), tf.float32, "images"
    )
    scores = "probabilities" if softmax else "logits"
    outputs = {
        SIGNATURE: [scores],
        "embedding": ["embedding"],
        "attention": [scores, "attention"],
    }
    functions = {
        name: signature_function(model, images, outputs[name])
        for name in (SIGNATURE, *signatures)
    }
    # A SavedModel keeps the names of inputs and outputs, and the converter
    # turns its variables into constants. Constants in the graph itself would be
    # stored once per signature and take twice the memory.
    module = _Module(model, functions)
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(module, folder, functions)
        del model, module, functions  # their weights are on disk now
        gc.collect()
        converter = tf.lite.TFLiteConverter.from_saved_model(
            folder, signature_keys=[SIGNATURE, *signatures]
        )
        tflite = converter.convert()
    return default_first(tflite) if signatures else tflite


class _Module(tf.Module):
    """A model and the functions to save with it."""

    def __init__(self, model: InferenceModel, functions: dict[str, Callable]):
        super().__init__()
        self.model = model
        self.functions = functions


def signature_function(
    model: InferenceModel, images: tf.TensorSpec, names: Sequence[str]
) -> Callable:
    """Some outputs of a model as a function of a batch of images."""

    def run(images):
        outputs = dict(model(images, heads_last=True))
        maps = model.num_heads * len(model.weights["class_attention"])
        shape = (images.shape[0], maps, *model.grid)
        outputs["attention"] = tf.reshape(outputs["attention"], shape)
        return {name: outputs[name] for name in names}

    return tf.function(run, [images])


def default_first(tflite: bytes) -> bytes:
    """Moves `serving_default` before the other signatures.

    The converter sorts signatures by name, but programs that do not know
    signatures run the first graph.
    """
    model = flatbuffer_utils.read_model_from_bytearray(bytearray(tflite))
    order = sorted(
        model.signatureDefs,
        key=lambda one: one.signatureKey.decode() != SIGNATURE,
    )
    model.subgraphs = [model.subgraphs[one.subgraphIndex] for one in order]
    for index, signature in enumerate(order):
        signature.subgraphIndex = index
    model.signatureDefs = order
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def take_uint8(tflite: bytes) -> bytes:
    """Changes the input of a `.tflite` model from float32 to uint8.

    XNNPACK cannot cast integers, so the input is declared as quantized in
    steps of 1, and a dequantize op, which XNNPACK supports, converts it.

    Args:
        tflite: model of `convert`, quantized or not.

    Returns:
        The changed model.
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
