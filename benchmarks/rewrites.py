"""Rewrites: time that each rewrite of the inference graph saves.

The exported graph, the same graph with one rewrite undone, and the Keras model,
in interleaved rounds. Undoing a rewrite restores the operation that it folded
away, with ones and zeros as weights; they are variables, so no compiler folds
them again.
"""

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import tensorflow as tf

import keras_cait
from benchmarks.command import Count, Output, Rounds, benchmark_app, run
from benchmarks.interleave import Timing, relative, take_turns
from benchmarks.results import Rows, show, write
from export import inference_graph
from export.inference_graph import (
    InferenceModel,
    dense,
    matmul,
    mix_heads,
    normalize,
    softmax,
)
from training.recipe import Variant

Function = Callable[[tf.Tensor], Any]


def functions_of_images(model: keras_cait.CaiT) -> dict[str, Function]:
    """The graphs to time, as functions of images."""
    graph = InferenceModel(model)
    width, heads = graph.embed_dim, graph.num_heads
    ones = tf.Variable(tf.ones(3 * width))
    zeros = tf.Variable(tf.zeros(3 * width))
    head_bias = tf.Variable(tf.zeros((heads, 1, 1, 1)))

    def whole(images: tf.Tensor) -> tf.Tensor:
        return graph(images)["logits"]

    def undone(**functions: Any) -> Function:
        def call(images: tf.Tensor) -> tf.Tensor:
            with mock.patch.multiple(inference_graph, **functions):
                return whole(images)

        return call

    def scaled(x):
        return x * ones[: x.shape[-1]]

    def affine(x):
        return scaled(x) + zeros[: x.shape[-1]]

    def branch(*arguments):
        """A dense layer, with LayerScale at the end of a branch."""
        y = dense(*arguments)
        return scaled(y) if y.shape[-1] == width else y

    def query_scaled(*arguments):
        """A dense layer; scales all of qkv, though only q needs it."""
        y = matmul(*arguments)
        return scaled(y) if y.shape[-1] == 3 * width else y

    def all_patches(images):
        attend = partial(class_attention_of_all_patches, graph)
        with mock.patch.object(graph, "class_attention", attend):
            return whole(images)

    return {
        "all rewrites": whole,
        "without pixel normalization": lambda images: whole(
            affine(tf.cast(images, tf.float32))
        ),
        "without LayerNorm's affine": undone(
            normalize=lambda x: affine(normalize(x))
        ),
        "without LayerScale": undone(dense=branch),
        "without the query's scale": undone(matmul=query_scaled),
        "without the biases of head mixing": undone(
            mix_heads=lambda *arguments: mix_heads(*arguments) + head_bias
        ),
        "without the single query of class attention": all_patches,
        "Keras model": partial(model, training=False),
    }


def class_attention_of_all_patches(
    graph: InferenceModel,
    token: tf.Tensor,
    patches: tf.Tensor,
    weights: dict[str, Any],
) -> tuple[tf.Tensor, tf.Tensor]:
    """`InferenceModel.class_attention` with a key and value per token."""
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
    outputs = dense(tf.reshape(values, (-1, width)), weights["proj"], "proj")
    return outputs, tf.transpose(scores[:, :, 0], (1, 0, 2))


def compiled(
    functions: dict[str, Function], images: tf.Tensor, xla: bool
) -> dict[str, Callable[[], object]]:
    """The functions as graphs, plain or compiled by XLA, on these images."""

    def run(step: Function) -> object:
        return step(images).numpy()

    return {
        name: partial(run, tf.function(function, jit_compile=xla))
        for name, function in functions.items()
    }


def rows(record: dict[str, dict[str, Timing]]) -> Rows:
    """Times in each mode, relative to the graph with all rewrites."""
    return {
        name: {
            mode: relative(timings[name], timings["all rewrites"])
            for mode, timings in record.items()
        }
        for name in record["graph"]
    }


app = benchmark_app("rewrites", __doc__)


@app.default
def main(
    *,
    variant: Variant = "S24",
    batch_size: Count = 8,
    rounds: Rounds = 7,
    output: Output = None,
) -> None:
    """Times the graph without each rewrite, plain and compiled by XLA.

    Args:
        variant: Model to time, such as XXS24 or S24.
        batch_size: Images per run.
    """
    model = getattr(keras_cait, f"CaiT_{variant}")(weights=None)
    images = tf.zeros((batch_size, *model.image_shape))
    functions = functions_of_images(model)
    record = {
        mode: take_turns(compiled(functions, images, xla), rounds)
        for mode, xla in (("graph", False), ("XLA", True))
    }
    title = f"CaiT-{variant}, batch {batch_size}, time"
    tables = {title: rows(record)}
    show(title, tables[title])
    write(tables, output, rounds)


if __name__ == "__main__":
    run(app)
