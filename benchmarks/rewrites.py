"""What each rewrite of the inference graph brings.

    python -m benchmarks.rewrites --variant S24 --output rewrites.json

The exported graph, the same graph with one rewrite undone, and the Keras model,
in turns. A rewrite is undone by putting back the operation that it folded away,
with ones and zeros as its weights: variables, which no compiler folds again.
"""

import argparse
import os
import time
from functools import partial
from pathlib import Path
from unittest import mock

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf

import keras_cait
from benchmarks.record import show, write
from export import inference_graph
from export.inference_graph import (
    InferenceModel,
    dense,
    matmul,
    mix_heads,
    normalise,
    softmax,
)


def contestants(model):
    """The functions of images that are compared, by name."""
    graph = InferenceModel(model)
    width, heads = graph.embed_dim, graph.num_heads
    ones = tf.Variable(tf.ones(3 * width))
    zeros = tf.Variable(tf.zeros(3 * width))
    head_bias = tf.Variable(tf.zeros((heads, 1, 1, 1)))

    def whole(images):
        return graph(images)["logits"]

    def undone(**functions):
        def run(images):
            with mock.patch.multiple(inference_graph, **functions):
                return whole(images)

        return run

    def scaled(x):
        return x * ones[: x.shape[-1]]

    def affine(x):
        return scaled(x) + zeros[: x.shape[-1]]

    def branch(*arguments):
        """A dense layer, and LayerScale where it ends a branch."""
        y = dense(*arguments)
        return scaled(y) if y.shape[-1] == width else y

    def query_scaled(*arguments):
        """A dense layer; qkv times a vector, which only the query needs."""
        y = matmul(*arguments)
        return scaled(y) if y.shape[-1] == 3 * width else y

    def all_patches(images):
        attend = partial(class_attention_of_all_patches, graph)
        with mock.patch.object(graph, "class_attention", attend):
            return whole(images)

    return {
        "all rewrites": whole,
        "without pixel normalisation": lambda images: whole(
            affine(tf.cast(images, tf.float32))
        ),
        "without LayerNorm's affine": undone(
            normalise=lambda x: affine(normalise(x))
        ),
        "without LayerScale": undone(dense=branch),
        "without the query's scale": undone(matmul=query_scaled),
        "without the biases of head mixing": undone(
            mix_heads=lambda *arguments: mix_heads(*arguments) + head_bias
        ),
        "without the single query of class attention": all_patches,
        "Keras model": partial(model, training=False),
    }


def class_attention_of_all_patches(graph, token, patches, weights):
    """`InferenceModel.class_attention`, with keys and values of every token."""
    heads, width = graph.num_heads, graph.embed_dim
    tokens = tf.concat([tf.expand_dims(token, 1), patches], axis=1)

    def project(kernel):
        kernel = tf.reshape(kernel, (width, width))
        x = tf.matmul(tf.reshape(tokens, (-1, width)), kernel)
        shape = (-1, tokens.shape[1], heads, width // heads)
        return tf.transpose(tf.reshape(x, shape), (2, 0, 1, 3))

    key = project(tf.transpose(weights["key"], (2, 0, 1)))
    value = project(tf.transpose(weights["value"], (1, 0, 2)))
    query = tf.reshape(
        matmul(token, weights["query"], "query"), (-1, heads, 1, width // heads)
    )
    query = tf.transpose(query, (1, 0, 2, 3))
    scores = softmax(tf.matmul(query, key, transpose_b=True))  # (H, B, 1, T)
    values = tf.transpose(tf.matmul(scores, value), (1, 2, 0, 3))
    answer = dense(tf.reshape(values, (-1, width)), weights["proj"])
    return answer, tf.transpose(scores[:, :, 0], (1, 0, 2))


def fastest(functions, images, rounds):
    """Fastest seconds of each function, run once each in every round."""
    seconds = {name: [] for name in functions}
    for function in functions.values():
        function(images), function(images)
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function(images).numpy()
            seconds[name].append(time.perf_counter() - start)
    return {name: min(times) for name, times in seconds.items()}


def parser():
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    arguments.add_argument("--variant", default="S24")
    arguments.add_argument("--batch-size", type=int, default=8)
    arguments.add_argument("--rounds", type=int, default=7)
    arguments.add_argument("--output", type=Path, help="JSON file to write")
    return arguments


def main():
    arguments = parser().parse_args()
    model = getattr(keras_cait, f"CaiT_{arguments.variant}")(weights=None)
    images = tf.zeros((arguments.batch_size, *model.image_shape))
    record = {}
    for mode, xla in (("graph", False), ("XLA", True)):
        functions = {
            name: tf.function(function, jit_compile=xla)
            for name, function in contestants(model).items()
        }
        record[mode] = fastest(functions, images, arguments.rounds)
    title = f"CaiT-{arguments.variant}, batch {arguments.batch_size}"
    tables = {title: rows(record)}
    show(title, tables[title])
    write(tables, arguments.output)


def rows(record):
    """Times of each mode over that of all rewrites."""
    return {
        name: {
            mode: seconds[name] / seconds["all rewrites"]
            for mode, seconds in record.items()
        }
        for name in record["graph"]
    }


if __name__ == "__main__":
    main()
