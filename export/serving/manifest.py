"""`manifest.json`: what a version of a served model is made of."""

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf
from tensorflow.core.framework.node_def_pb2 import NodeDef
from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef, TensorInfo
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

import keras_cait
from export.exportable import patch_grid
from keras_cait.conversion import to_reference
from keras_cait.files import sha256

# The oldest that has all operations of the graph and runs it; tested.
OLDEST_TENSORFLOW = "2.18.1"


def describe_version(model: keras_cait.CaiT, folder: Path) -> dict[str, Any]:
    """Describes a version.

    Args:
        model: the model it was made from.
        folder: its SavedModel.

    Returns:
        JSON-serializable dict.
    """
    signatures = read_graph(folder).signature_def
    files = {
        str(file.relative_to(folder)): file
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    return {
        "model": model.name,
        "image_size": model.image_shape[:2],
        "classes": model.classes,
        "parameters": model.count_params(),
        "patches": math.prod(patch_grid(model)),
        "heads": model.num_heads,
        "width": model.embed_dim,
        "weights_sha256": weights_hash(model),
        "oldest_tensorflow": OLDEST_TENSORFLOW,
        "versions": {
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
            "keras_cait": keras_cait.__version__,
        },
        "signatures": {
            name: {
                "method": signature.method_name,
                "inputs": describe_tensors(signature.inputs),
                "outputs": describe_tensors(signature.outputs),
            }
            for name, signature in sorted(signatures.items())
            if not name.startswith("__")
        },
        "operations": operations(folder),
        "bytes": {name: file.stat().st_size for name, file in files.items()},
        "sha256": {name: sha256(file) for name, file in files.items()},
    }


def read_graph(folder: Path) -> MetaGraphDef:
    """The only graph of a SavedModel, with its signatures."""
    saved = SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    return saved.meta_graphs[0]


def operations(folder: Path) -> list[str]:
    """Names of the TensorFlow ops that a SavedModel uses."""
    return sorted({node.op for node in nodes(folder)})


def nodes(folder: Path) -> list[NodeDef]:
    """All nodes of a SavedModel, with those of its functions."""
    graph = read_graph(folder).graph_def
    found = [*graph.node]
    for function in graph.library.function:
        found += function.node_def
    return found


def describe_tensors(infos: Mapping[str, TensorInfo]) -> dict[str, Any]:
    """Dtype and shape of the tensors of a signature, by name."""
    return {
        name: {
            "dtype": tf.as_dtype(info.dtype).name,
            "shape": [
                None if side.size < 0 else side.size
                for side in info.tensor_shape.dim
            ],
        }
        for name, info in sorted(infos.items())
    }


def weights_hash(model: keras_cait.CaiT) -> str:
    """SHA-256 of all weights, independent of the file they came from."""
    digest = hashlib.sha256()
    for name, array in sorted(to_reference(model.weights).items()):
        digest.update(name.encode())
        digest.update(array.tobytes())  # bfloat16 has no buffer
    return digest.hexdigest()
