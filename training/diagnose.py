"""Reports what happens inside a trained model, layer by layer.

python -m training.diagnose --model runs/digits --data digits
python -m training.diagnose --model S24 --data imagenet2012 --data-dir DIR
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# First, as it explains imports that fail.
from keras_cait.command_line import (
    BatchSize,
    Count,
    CropRatio,
    Data,
    DataDir,
    ImageSize,
    MaxUnreadable,
    ModelSource,
    Variant,
    require_tensorflow,
    run,
)

# isort: split
import keras
import matplotlib

matplotlib.use("Agg")

import numpy as np
import tensorflow as tf
from cyclopts import App, Parameter
from keras import ops
from matplotlib import pyplot as plt

import keras_cait
from keras_cait.baselines import ViT
from keras_cait.datasets import split_of
from keras_cait.files import folder_path, locked, write_text
from keras_cait.loading import classifier, find_labels, load_model
from training.data.datasets import check_classes, load
from training.data.pipeline import (
    center_crop,
    evaluation_batches,
    naming_unreadable,
)
from training.loop.checkpoints import restore_raw_weights


def diagnose(
    model: keras.Model,
    batches: Iterable[tuple[tf.Tensor, tf.Tensor, tf.Tensor]],
) -> list[dict[str, Any]]:
    """Norms, gradients, gammas and attention of every block.

    Args:
        model: `CaiT` or `ViT` with a head.
        batches: `(images, labels, weights)`, as of `evaluation_batches`;
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
        ValueError: the model is another one, or images have many labels.

    Reference: Touvron et al., 2021, section 2 and figures 3 and 6;
    Dosovitskiy et al., 2020, figure 7 (arXiv 2010.11929).
    """
    if not isinstance(model, keras_cait.CaiT | ViT) or not model.include_top:
        raise ValueError(
            "Expected a CaiT or ViT with a head. Got "
            f"{type(model).__name__} {model.name!r}."
        )
    config = {**model.get_config(), "classifier_activation": None}
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


def figures(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """Draws the rows of `diagnose`: `norms.png`, `gammas.png`, `attention.png`.

    Class-attention blocks are to the right of a dotted line.
    """
    places = np.arange(len(rows))
    names = [
        ("c" if row["block"].startswith("class") else "")
        + row["block"].rpartition("_")[2]
        for row in rows
    ]
    own = sum(row["block"].startswith("self") for row in rows)

    def panel(axes, title, ylabel, log=False):
        axes.set(title=title, ylabel=ylabel, xlabel="block")
        step = -(-len(rows) // 16)
        axes.set_xticks(places[::step], names[::step])
        axes.set_xlim(-0.5, len(rows) - 0.5)
        if own < len(rows):
            axes.axvline(own - 0.5, color="0.6", linestyle=":")
        if log:
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)

    def pair():
        return plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")

    def save(drawing, name):
        drawing.savefig(folder / name, dpi=150)
        plt.close(drawing)

    def values(key):
        return [row[key] for row in rows]

    drawing, axes = plt.subplots(2, 2, figsize=(9, 6.4), layout="constrained")
    axes[0, 0].plot(places, values("activation"), "o-")
    panel(axes[0, 0], "Output of a block", "root mean square")
    for key, label in (("attention", "attention"), ("mlp", "MLP")):
        shares = 100 * np.array(values(f"{key}_share"))
        axes[0, 1].plot(places, shares, "o-", label=label)
        axes[1, 1].plot(places, values(f"{key}_gradient"), "o-", label=label)
    panel(axes[0, 1], "Branch over the stream it is added to", "share / %")
    axes[1, 0].plot(places, values("activation_gradient"), "o-")
    panel(axes[1, 0], "Gradient of a block's output", "norm", log=True)
    panel(axes[1, 1], "Gradient of the weights", "norm", log=True)
    for one in axes[:, 1]:
        one.legend(frameon=False)
    save(drawing, "norms.png")

    if any(row["gammas_1"] for row in rows):
        drawing, axes = pair()
        for one, key, title in (
            (axes[0], "gammas_1", "LayerScale of attention"),
            (axes[1], "gammas_2", "LayerScale of the MLP"),
        ):
            known = [i for i, row in enumerate(rows) if row[key]]
            low, middle, high = np.transpose([rows[i][key] for i in known])
            one.errorbar(
                known,
                middle,
                [middle - low, high - middle],
                fmt="o",
                capsize=3,
            )
            panel(one, title, "size of gamma")
            one.set_ylim(bottom=0)
        save(drawing, "gammas.png")

    drawing, axes = pair()
    for one, key, title, ylabel, chosen in (
        (axes[0], "distance", "Self-attention", "distance / patches", "self"),
        (axes[1], "entropy", "Class attention", "entropy / log keys", "class"),
    ):
        one.set(title=title, ylabel=ylabel, xlabel="block")
        found = [row[key] for row in rows if row["block"].startswith(chosen)]
        for i, heads in enumerate(found):
            one.plot([i] * len(heads), heads, "o", color="C0", alpha=0.5)
            one.plot([i], np.mean(heads), "_", color="black", markersize=18)
        step = -(-max(len(found), 1) // 12)
        one.set_xticks(range(0, len(found), step))
        one.set_xlim(-0.5, max(len(found), 1) - 0.5)
        one.set_ylim(bottom=0)
        one.grid(alpha=0.3)
        one.spines[["top", "right"]].set_visible(False)
    axes[1].set_ylim(0, 1)
    save(drawing, "attention.png")


def text(
    rows: Sequence[dict[str, Any]], name: str, data: str, count: int
) -> str:
    """The report, in Markdown."""
    lines = [
        f"# Inside {name}\n",
        f"Measured on {count} validation images of {data}, without "
        "augmentation. Class-attention blocks are marked c.\n",
        "![Norms](norms.png)\n",
        "The gradient of a block's output is that of one image's loss, the "
        "gradient of the weights that of the mean loss.\n",
    ]
    if any(row["gammas_1"] for row in rows):
        lines += [
            "![Gammas](gammas.png)\n",
            "Sizes of gamma: median, and the range from the 5th to the 95th "
            "percentile of the channels.\n",
        ]
    lines += [
        "![Attention](attention.png)\n",
        "Each dot is a head, each bar the mean over a block's heads: how far a "
        "patch looks, and how evenly the class token does (1 is uniform "
        "attention).\n",
        "| block | activation | attention share | MLP share | gradient of "
        "activation | of attention | of MLP | gamma 1 | gamma 2 |",
        "|" + "---|" * 9,
    ]
    values = [
        "activation",
        "attention_share",
        "mlp_share",
        "activation_gradient",
        "attention_gradient",
        "mlp_gradient",
    ]
    for row in rows:
        medians = [
            f"{row[key][1]:.3g}" if row[key] else ""
            for key in ("gammas_1", "gammas_2")
        ]
        cells = [row["block"], *(f"{row[key]:.3g}" for key in values), *medians]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


app = App(name="python -m training.diagnose", help=__doc__, version_flags=[])


@app.default
def report(
    *,
    model: ModelSource,
    data: Data = "imagenet2012",
    data_dir: DataDir = None,
    output: Annotated[
        Path | None,
        Parameter(help="Folder of the report. Default: diagnostics/MODEL."),
    ] = None,
    images: Annotated[
        Count,
        Parameter(help="Number of images, spread over the validation split."),
    ] = 256,
    variant: Variant = None,
    image_size: ImageSize = None,
    batch_size: BatchSize = 32,
    crop_ratio: CropRatio = 1.0,
    max_unreadable: MaxUnreadable = 0,
    raw: Annotated[
        bool,
        Parameter(
            negative=(),
            help="Use the weights of a run's last step, not its EMA weights.",
        ),
    ] = False,
) -> None:
    """Writes report.md, its figures and diagnostics.json."""
    require_tensorflow()
    output = folder_path(output or Path("diagnostics") / Path(model).stem)
    loaded = load_model(model, variant=variant, image_size=image_size)
    if raw:
        restore_raw_weights(loaded, model)
    examples = load(
        data, "validation", data_dir, max_unreadable, **split_of(model, data)
    )
    classes = classifier(loaded).classes
    check_classes(classes, find_labels(model), examples, data)
    count = min(images, examples.count)
    spread = replace(
        examples,
        count=count,
        read=lambda i: examples.read(i * examples.count // count),
        name=lambda i: examples.name(i * examples.count // count),
    )
    transform = center_crop(loaded.input.shape[1:3], crop_ratio)
    with naming_unreadable(spread, transform):
        rows = diagnose(
            loaded, evaluation_batches(spread, transform, batch_size)
        )
    name = Path(model).stem
    result = {"model": name, "data": data, "images": count, "blocks": rows}
    with locked(output):
        write_text(
            output / "diagnostics.json", json.dumps(result, indent=1) + "\n"
        )
        figures(rows, output)
        write_text(output / "report.md", text(rows, name, data, count))
    print(f"The report is {output / 'report.md'}")


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line: `argv`, or that of the process."""
    run(app, argv)


if __name__ == "__main__":
    main()
