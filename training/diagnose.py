"""Reports what happens inside a trained model, layer by layer.

python -m training.diagnose --model runs/digits --data digits

python -m training.diagnose --model S24 --data imagenet2012 --data-dir DIR
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

# First, as it explains imports that fail.
from keras_cait.command_line import (
    BatchSize,
    Count,
    CropRatio,
    Data,
    DataDir,
    ImageSize,
    MaxUnreadable,
    TrainedModel,
    Variant,
    require_tensorflow,
    run,
)

# isort: split
import matplotlib

matplotlib.use("Agg")

import numpy as np
from cyclopts import App, Parameter
from matplotlib import pyplot as plt

from keras_cait.datasets import split_of
from keras_cait.files import file_name, folder_path, locked, write_text
from keras_cait.labels import check_classes, find_labels
from keras_cait.loading import classifier, load_model
from training.data.datasets import load
from training.data.pipeline import (
    center_crop,
    evaluation_batches,
    naming_unreadable,
)
from training.diagnosis import diagnose
from training.loop.checkpoints import restore_raw_weights
from training.options import Raw


def figures(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """Draws the rows of `diagnose`: `norms.png`, `gammas.png`, `attention.png`.

    Class-attention blocks are to the right of a dotted line.
    """
    places = range(len(rows))
    names = [
        ("c" if row["block"].startswith("class") else "")
        + row["block"].rpartition("_")[2]
        for row in rows
    ]

    def panel(axes, title, ylabel, blocks=names):
        axes.set(title=title, ylabel=ylabel, xlabel="block")
        count = max(len(blocks), 1)
        step = -(-count // 16)
        axes.set_xticks(range(0, len(blocks), step), blocks[::step])
        axes.set_xlim(-0.5, count - 0.5)
        if "c0" in blocks:
            axes.axvline(names.index("c0") - 0.5, color="0.6", linestyle=":")
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
    panel(axes[1, 0], "Gradient of a block's output", "norm")
    panel(axes[1, 1], "Gradient of the weights", "norm")
    for one in axes[1]:
        one.set_yscale("log")
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
            panel(one, title, "absolute gamma")
            one.set_ylim(0, 1.05 * max(high))
        save(drawing, "gammas.png")

    drawing, axes = pair()
    for one, key, title, ylabel, chosen in (
        (axes[0], "distance", "Self-attention", "distance / patches", "self"),
        (axes[1], "entropy", "Class attention", "entropy / log keys", "class"),
    ):
        found = [row[key] for row in rows if row["block"].startswith(chosen)]
        for i, heads in enumerate(found):
            one.plot([i] * len(heads), heads, "o", color="C0", alpha=0.5)
            one.plot([i], np.mean(heads), "_", color="black", markersize=18)
        panel(one, title, ylabel, range(len(found)))
        # With room for the dots at the top.
        one.set_ylim(0, 1.05 * np.max(found, initial=1))
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
            "Absolute gamma: median, and range from the 5th to the 95th "
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
    model: TrainedModel,
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
    raw: Raw = False,
) -> None:
    """Writes report.md, its figures and diagnostics.json."""
    require_tensorflow()
    name = f"{model} raw" if raw else model
    output = folder_path(output or Path("diagnostics") / file_name(name))
    loaded = load_model(model, variant=variant, image_size=image_size)
    if raw:
        restore_raw_weights(loaded, model)
    examples = load(
        data, "validation", data_dir, max_unreadable, **split_of(model, data)
    )
    found = classifier(loaded)
    check_classes(found.classes, find_labels(model), examples.class_names, data)
    count = min(images, examples.count)
    spread = replace(
        examples,
        count=count,
        read=lambda i: examples.read(i * examples.count // count),
        name=lambda i: examples.name(i * examples.count // count),
    )
    transform = center_crop(found.image_size, crop_ratio)
    with naming_unreadable(spread, transform):
        rows = diagnose(
            loaded, evaluation_batches(spread, transform, batch_size)
        )
    result = {"model": name, "data": data, "images": count, "blocks": rows}
    with locked(output):
        write_text(
            output / "diagnostics.json", json.dumps(result, indent=1) + "\n"
        )
        figures(rows, output)
        write_text(output / "report.md", text(rows, name, data, count))
    print(f"The report is {output / 'report.md'}")


if __name__ == "__main__":
    run(app)
