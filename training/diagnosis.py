"""What happens inside a model: norms, gradients, gammas and attention."""

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

import keras_cait
from keras_cait.baselines import ViT


def diagnose(
    model: keras.Model,
    batches: Iterable[tuple[tf.Tensor, tf.Tensor, tf.Tensor]],
) -> list[dict[str, Any]]:
    """Norms, gradients, gammas and attention of every block.

    Args:
        model: `CaiT` or `ViT` with a head. It is measured in float32.
        batches: `(images, labels, weights)`, as in `evaluation_batches`;
            padding has weight 0.

    Returns:
        One dict per block, self-attention first, with

        - `block`: its name;
        - `activation`: root mean square of the block's output;
        - `attention_share`, `mlp_share`: size of a scaled branch over that of
          the stream that it is added to;
        - `activation_gradient`: norm of the gradient of one image's loss with
          respect to the block's output, root mean square over the images;
        - `attention_gradient`, `mlp_gradient`: norm of the gradient of the mean
          loss with respect to the weights of each branch (without norms and
          gammas);
        - `gammas_1`, `gammas_2`: 5th, 50th and 95th percentile of the sizes of
          LayerScale's gammas; `None` without LayerScale;
        - `distance` (self-attention): per head, the mean distance from a patch
          to the patches that it attends to, in patches, weighted by the sizes
          of the scores, without those of a class token;
        - `entropy` (class attention): per head, the entropy of the scores over
          that of uniform scores, 0...1.

    Raises:
        ValueError: the model is another one or has diverged, or images have
            many labels.

    Reference: Touvron et al., 2021, section 2 and figures 3 and 6;
    Dosovitskiy et al., 2020, figure 7 (arXiv 2010.11929).
    """
    if not isinstance(model, keras_cait.CaiT | ViT) or not model.include_top:
        raise ValueError(
            "Expected a CaiT or ViT with a head. Got "
            f"{type(model).__name__} {model.name!r}."
        )
    config = {
        **model.get_config(),
        "classifier_activation": None,
        "dtype": "float32",
        "frozen": [],  # which have gradients, too
    }
    with_logits = type(model).from_config(config)
    with_logits.set_weights(model.get_weights())
    model = with_logits
    grid = model.get_layer("patch_embedding").output.shape[1:3]
    blocks = model.self_attention_blocks + model.class_attention_blocks
    inside = keras.Model(
        model.input,
        [
            [block.input for block in blocks],
            [block.output for block in blocks],
            model.output,
        ],
    )
    sums = [{} for _ in blocks]
    by_weights = [0.0] * len(model.trainable_variables)
    count = 0
    for images, labels, weights in batches:
        if labels.ndim != 1:
            raise ValueError(
                "A loss needs one label per image; images of this dataset have "
                "any number. Choose another --data."
            )
        count += float(tf.reduce_sum(weights))
        with tf.GradientTape() as tape:
            tape.watch(images)
            inputs, outputs, logits = inside(images, training=False)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
                labels, logits
            )
            loss = tf.reduce_sum(losses * weights)
        if not np.isfinite(loss):
            raise ValueError(
                f"The loss of {model.name!r} on these images is not finite: "
                "its training has diverged."
            )
        by_outputs, gradients = tape.gradient(
            loss,
            (outputs, [v.value for v in model.trainable_variables]),
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
        by_weights = [
            total + gradient
            for total, gradient in zip(by_weights, gradients, strict=True)
        ]
        for block, *tensors, total in zip(
            blocks, inputs, outputs, by_outputs, sums, strict=True
        ):
            for name, value in measure_block(block, grid, *tensors).items():
                shares = tf.reshape(weights, (-1,) + (1,) * (value.ndim - 1))
                value = np.sum(value * shares.numpy(), axis=0)
                total[name] = total.get(name, 0.0) + value
    rows = []
    for block, total in zip(blocks, sums, strict=True):
        mean = {name: value / count for name, value in total.items()}
        rows.append(
            {
                "block": block.name,
                "activation": float(mean["output"] ** 0.5),
                "attention_share": float(
                    (mean["attention"] / mean["input"]) ** 0.5
                ),
                "mlp_share": float((mean["mlp"] / mean["between"]) ** 0.5),
                "activation_gradient": float(mean["gradient"] ** 0.5),
                **{
                    f"{part}_gradient": norm_of(
                        f"{block.name}/{part}/", model, by_weights, count
                    )
                    for part in ("attention", "mlp")
                },
                **{
                    f"gammas_{i}": gammas(getattr(block, f"layer_scale_{i}"))
                    for i in (1, 2)
                },
                **{
                    name: mean[name].tolist()
                    for name in ("distance", "entropy")
                    if name in mean
                },
            }
        )
    return rows


def measure_block(
    block: keras.layers.Layer,
    grid: tuple[int, int],
    inputs: tf.Tensor | list[tf.Tensor],
    output: tf.Tensor,
    gradient: tf.Tensor,
) -> dict[str, np.ndarray]:
    """A block's measures per image: arrays `(batch,)` or `(batch, heads)`."""
    *token, patches = inputs if isinstance(inputs, list) else [inputs]
    stream = token[0] if token else patches
    branch, scores = block.attention(
        *(block.norm1(x) for x in (*token, patches)),
        return_attention_scores=True,
    )
    branch = block.layer_scale_1(branch)
    between = stream + branch
    found = {
        "input": mean_square(stream),
        "attention": mean_square(branch),
        "between": mean_square(between),
        "mlp": mean_square(output - between),
        "output": mean_square(output),
        "gradient": tf.reduce_sum(gradient**2, axis=(1, 2)).numpy(),
    }
    scores = ops.convert_to_numpy(ops.cast(scores, "float32"))
    if token:
        found["entropy"] = entropy(scores[:, :, 0])
    else:
        found["distance"] = distance(scores, grid)
    return found


def mean_square(tensor: tf.Tensor) -> np.ndarray:
    return tf.reduce_mean(tf.cast(tensor, tf.float32) ** 2, axis=(1, 2)).numpy()


def entropy(scores: np.ndarray) -> np.ndarray:
    """Entropy of scores over that of uniform ones: `(..., keys)` to `(...)`.

    Example:
    >>> entropy(np.array([[0.25] * 4, [1.0, 0, 0, 0]])).tolist()
    [1.0, 0.0]
    """
    logarithms = np.log(np.maximum(scores, np.finfo("float32").tiny))
    return abs(np.sum(scores * logarithms, axis=-1)) / np.log(scores.shape[-1])


def distance(scores: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Mean distance of attention, in patches.

    Args:
        scores: array `(batch, heads, tokens, tokens)`; a class token, if there
            is one, comes first.
        grid: rows and columns of patches.

    Returns:
        Array `(batch, heads)`.

    Example:
    >>> distance(np.full((1, 1, 4, 4), 0.25), (2, 2)).round(3)
    array([[0.854]])
    """
    patches = grid[0] * grid[1]
    sizes = np.abs(scores[..., -patches:, -patches:])
    places = np.stack(np.unravel_index(np.arange(patches), grid), 1)
    apart = np.linalg.norm(places[:, None] - places[None], axis=-1)
    means = np.sum(sizes * apart, axis=-1) / np.sum(sizes, axis=-1)
    return means.mean(axis=-1)


def norm_of(
    path: str, model: keras.Model, gradients: list[tf.Tensor], count: float
) -> float:
    """Norm of the mean gradient with respect to the weights under a path."""
    squares = [
        float(tf.reduce_sum(tf.cast(gradient, tf.float32) ** 2))
        for variable, gradient in zip(
            model.trainable_variables, gradients, strict=True
        )
        if variable.path.startswith(path)
    ]
    return sum(squares) ** 0.5 / count


def gammas(scale: keras.layers.Layer) -> list[float] | None:
    """Percentiles of the sizes of the multipliers of a branch."""
    if not hasattr(scale, "gamma"):
        return None
    sizes = np.abs(ops.convert_to_numpy(scale.gamma))
    return np.percentile(sizes, (5, 50, 95)).tolist()
