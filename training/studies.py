"""The paper's studies, each a table and a figure of many small trainings.

python -m training.studies depth --output studies/depth
python -m training.studies class-token --scale imagenet --data-dir DIR

A study is a grid of models, trained with the same recipe and several seeds. The
same command goes on where an interrupted study stopped: a finished training is
not run again.
"""

import gc
import json
import math
import os
import shutil
import signal
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Literal

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import matplotlib

matplotlib.use("Agg")

import numpy as np
import tensorflow as tf
import tyro
from matplotlib import pyplot as plt

from keras_cait.baselines import SIZES, ResidualBlock, ViT
from training.command import run
from training.data.datasets import load
from training.data.pipeline import (
    evaluation_batches,
    evaluation_transform,
    steps_per_epoch,
    training_data,
)
from training.loop.checkpoints import Checkpoints, write_whole
from training.loop.distillation import make_loss
from training.loop.optimizers import make_optimizer
from training.loop.stacking import Stack, stacked
from training.loop.strategies import is_chief, lost_workers, make_strategy
from training.loop.trainer import Trainer
from training.recipes import RECIPES, Recipe


@dataclass(frozen=True)
class Cell:
    """One model of a study and how it is trained.

    Attributes:
        row, column: str. Where it stands in the table.
        model: dict, arguments of `keras_cait.baselines.ViT`.
        recipe: `Recipe`; of its fields, those of the model are not used.
        paper: float. Top-1 in percent of the paper; `None` where the source
            at hand gives none.
    """

    row: str
    column: str
    model: dict
    recipe: Recipe
    paper: float | None = None

    @property
    def name(self):
        words = f"{self.row} {self.column}"
        return "".join(c if c.isalnum() else "_" for c in words)


@dataclass(frozen=True)
class Scale:
    """The setting of all studies.

    Attributes:
        recipe: `Recipe`.
        model: dict, arguments of `ViT` that all models share.
        depths: tuple of int, numbers of blocks of the study of depth.
        drop_path_rates: tuple of float, stochastic depth for each of them.
        seeds: int. Trainings of each model, with seeds 0, 1, ...
        paper: dict of rows to the paper's top-1 for each of the depths.
    """

    recipe: Recipe
    model: dict
    depths: tuple
    drop_path_rates: tuple
    seeds: int = 1
    paper: dict = field(default_factory=dict)


# Table 1 of the paper: DeiT-S of 12, 18, 24 and 36 blocks, top-1 in percent of
# ImageNet-1k, and the rates of stochastic depth that it was adjusted to.
PAPER = {
    "pre-norm": (79.9, 80.7, 81.0, 81.9),
    "pre-norm, stochastic depth 0.05": (79.9, 80.1, 78.9, 78.9),
    "ReZero": (78.3, 80.1, 80.8, 81.6),
    "Fixup": (80.7, 82.0, 82.3, 82.4),
    "scalar": (80.4, 81.6, 81.1, 81.6),
    "LayerScale": (80.5, 81.7, 82.4, 82.9),
}

SCALES = {
    # 4 patches of 14 pixels, and a rate at which depth is hard: at a sixth of
    # it all scalings learn alike.
    "digits": Scale(
        Recipe(
            epochs=4,
            global_batch_size=50,
            learning_rate=0.1,
            warmup_epochs=1.0,
            weight_decay=0.05,
            clip_norm=0.0,
            ema_momentum=0.98,
            random_erasing=0.0,
            mixup_alpha=0.0,
            cutmix_alpha=0.0,
            evaluation_epochs=4,
        ),
        {
            **{"embed_dim": 32, "num_heads": 4, "patch_size": 14},
            "input_shape": (28, 28, 3),
        },
        depths=(12, 24, 36),
        drop_path_rates=(0.0, 0.0, 0.0),
        seeds=3,
        paper={row: (v[0], v[2], v[3]) for row, v in PAPER.items()},
    ),
    "imagenet": Scale(
        # The baseline's 79.9 is DeiT-S after 300 epochs (arXiv 2012.12877).
        replace(RECIPES["s24-224"], epochs=300),
        {"embed_dim": 384, "num_heads": SIZES["S"]["num_heads"]},
        depths=(12, 18, 24, 36),
        drop_path_rates=(0.05, 0.1, 0.2, 0.25),
        paper=PAPER,
    ),
}


def layer_scale(depth):
    """The paper's choice: the deeper, the closer to 0."""
    start = 0.1 if depth <= 18 else 1e-5 if depth <= 24 else 1e-6
    return {"residual_scaling": "layer_scale", "init_values": start}


def depth(scale):
    """Table 1: depth and residual scaling, convergence failures included."""
    cells = []
    for i, (blocks, rate) in enumerate(
        zip(scale.depths, scale.drop_path_rates, strict=True)
    ):
        start = layer_scale(blocks)["init_values"]
        rows = {
            "pre-norm": {},
            "ReZero": {"residual_scaling": "rezero"},
            "Fixup": {"residual_scaling": "fixup"},
            "scalar": {"residual_scaling": "scalar", "init_values": start},
            "LayerScale": layer_scale(blocks),
        }
        # Figure 2 (b): as their authors meant them.
        for row in ("ReZero", "Fixup"):
            rows[f"{row}, no norm, no warm-up"] = {
                **rows[row],
                "pre_norm": False,
                "warmup": False,
            }
        if rate > 0.05:  # else it is the first row
            rows["pre-norm, stochastic depth 0.05"] = {"drop_path_rate": 0.05}
        cells += [
            cell(
                scale,
                row,
                f"{blocks} blocks",
                scale.paper.get(row, (None,) * len(scale.depths))[i],
                depth=blocks,
                **{"drop_path_rate": rate} | options,
            )
            for row, options in rows.items()
        ]
    return cells


def class_token(scale):
    """Table 2: where the class token enters, or average pooling, or CaiT."""
    rows = {
        f"before block {entry}": {"class_token_depth": entry}
        for entry in (0, 2, 4, 8, 10, 11)
    }
    rows["average pooling"] = {"pooling": "avg"}
    for layers in (1, 2, 3):
        rows[f"after 12, {layers} of class attention"] = {
            "class_attention_depth": layers
        }
    return one_column(scale, 12, rows)


def layerscale_init(scale):
    """Initial gammas of LayerScale, at the least and the largest depth."""
    return [
        cell(
            scale,
            f"{start:g}",
            f"{blocks} blocks",
            depth=blocks,
            drop_path_rate=rate,
            residual_scaling="layer_scale",
            init_values=start,
        )
        for start in (1.0, 0.1, 1e-2, 1e-4, 1e-5, 1e-6)
        for blocks, rate in (
            (scale.depths[i], scale.drop_path_rates[i]) for i in (0, -1)
        )
    ]


def talking_heads(scale):
    """The path from DeiT-S to CaiT, whose last step is the talking heads."""
    blocks = scale.depths[-2]
    rows, options = {}, {}
    for row, change in (
        ("DeiT", {}),
        ("+ LayerScale", layer_scale(blocks)),
        ("+ class attention", {"class_attention_depth": 2}),
        ("+ talking heads: CaiT", {"talking_heads": True}),
    ):
        options = options | change
        rows[row] = options
    return one_column(scale, blocks, rows)


def class_attention_depth(scale):
    """CaiT with more or fewer class-attention blocks."""
    blocks = scale.depths[0]
    cait = {**layer_scale(blocks), "talking_heads": True}
    return one_column(
        scale,
        blocks,
        {
            f"{layers} of class attention": {
                **cait,
                "class_attention_depth": layers,
            }
            for layers in (1, 2, 3, 4)
        },
    )


def one_column(scale, blocks, rows):
    rates = dict(zip(scale.depths, scale.drop_path_rates, strict=True))
    return [
        cell(
            scale,
            row,
            f"{blocks} blocks",
            depth=blocks,
            drop_path_rate=rates[blocks],
            **options,
        )
        for row, options in rows.items()
    ]


def cell(scale, row, column, paper=None, warmup=True, **model):
    recipe = scale.recipe
    if not warmup:
        recipe = replace(recipe, warmup_epochs=0.0)
    return Cell(row, column, scale.model | model, recipe, paper)


STUDIES = {
    "depth": depth,
    "class-token": class_token,
    "layerscale-init": layerscale_init,
    "talking-heads": talking_heads,
    "class-attention-depth": class_attention_depth,
}


@lost_workers()
def train(cell, seed, folder, data_dir=None, strategy=None, save_seconds=600.0):
    """Trains one cell with one seed, unless it is finished already.

    Args:
        cell: `Cell`.
        seed: int.
        folder: path. The result is `NAME-SEED.json` in it; checkpoints are
            beside it until the training is finished.
        data_dir: path, where TensorFlow Datasets keeps its files.
        strategy: `tf.distribute.Strategy`; `None` is one device.
        save_seconds: float. Seconds between checkpoints, at an epoch's end.

    Returns:
        dict: the cell, and in 0...1 `top1` of the averaged weights and
        `raw_top1` on the held-out images; `loss` and `accuracy` in the last
        epoch of training; `failed_at_step`, `None` unless loss or gradient
        were not finite, which ends the training with both top-1 `None`;
        `gammas`, the mean size of what multiplies the two branches of each
        block; `minutes` since the last start; versions.

    Raises:
        ValueError: the result is that of another cell.
    """
    path = folder / f"{cell.name}-{seed}.json"
    recipe = replace(cell.recipe, seed=seed)
    setting = json.loads(
        json.dumps({"model": cell.model, "recipe": asdict(recipe)})
    )
    if path.exists():
        result = json.loads(path.read_text())
        if any(result[key] != value for key, value in setting.items()):
            raise ValueError(
                f"{path} is the result of another setting. Choose another "
                "--output, or delete it."
            )
        return result
    began = time.perf_counter()
    strategy = strategy or make_strategy("one")
    keras.backend.clear_session()
    gc.collect()  # graphs of the cell before
    keras.utils.set_random_seed(seed)
    keras.config.set_dtype_policy(recipe.precision)
    examples = load(recipe.data, "train", data_dir)
    held_out = load(recipe.data, "held_out", data_dir)
    classes = len(examples.class_names)
    steps = steps_per_epoch(examples, recipe)
    trainer = Trainer(
        recipe,
        strategy,
        lambda: stacked(
            ViT(**cell.model, classes=classes, classifier_activation=None)
        ),
        lambda model: make_optimizer(recipe, model, steps),
        lambda: make_loss(recipe, classes),
    )
    unfinished = folder / f"{cell.name}-{seed}"
    unfinished.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(trainer.state, unfinished, is_chief(strategy), 1)
    checkpoints.restore()
    saved = time.perf_counter()
    batches = training_data(
        recipe, strategy, examples, trainer.step, unfinished
    )
    means = trainer.means()
    while trainer.step < recipe.epochs * steps and trainer.nonfinite < 0:
        trainer.reset_means()
        for _ in range(steps):
            trainer.train_step(*next(batches))
        means = trainer.means()
        if time.perf_counter() - saved >= save_seconds:
            saved = time.perf_counter()
            checkpoints.save(trainer.step)
    result = {
        "row": cell.row,
        "column": cell.column,
        "seed": seed,
        "top1": None,
        "raw_top1": None,
        "loss": finite(means["loss"]),
        "accuracy": finite(means["accuracy"]),
        "failed_at_step": None,
        "gammas": gammas(trainer.average),
        **setting,
    }
    if trainer.nonfinite >= 0:
        result["failed_at_step"] = trainer.nonfinite
    else:
        accuracy = trainer.evaluate(
            strategy.distribute_datasets_from_function(
                lambda context: evaluation_batches(
                    held_out,
                    evaluation_transform(recipe),
                    recipe.global_batch_size,
                    context,
                )
            )
        )
        result["top1"] = accuracy["val_accuracy"]
        result["raw_top1"] = accuracy["val_raw_accuracy"]
    result["minutes"] = (time.perf_counter() - began) / 60
    result["keras"] = keras.__version__
    result["tensorflow"] = tf.__version__
    if is_chief(strategy):
        write_whole(path, json.dumps(result, indent=2) + "\n")
        shutil.rmtree(unfinished)
    return result


def finite(value):
    """The value, or `None`, which JSON can hold."""
    return value if math.isfinite(value) else None


def gammas(model):
    """Mean size of what multiplies the branches: a pair for each block."""
    pairs = []
    for layer in model.layers:
        if isinstance(layer, Stack):
            weights = dict(zip(layer.paths, layer.stacks, strict=True))
        elif isinstance(layer, ResidualBlock):
            weights = {w.path: w for w in layer.weights}
        else:
            continue
        sizes = [
            np.atleast_2d(abs(keras.ops.convert_to_numpy(weight))).mean(axis=-1)
            for path, weight in weights.items()
            if "layer_scale_" in path
        ]
        pairs += np.transpose(sizes).tolist()
    return pairs or None


def grid(results):
    """Results by row and column, in the order in which they come."""
    found = {}
    for result in results:
        row = found.setdefault(result["row"], {})
        row.setdefault(result["column"], []).append(result)
    return found


def table(cells, results):
    """A Markdown table: top-1 in percent, mean and deviation over seeds.

    Args:
        cells: list of `Cell`.
        results: list of dicts, as `train` returns them; some may be missing.

    Returns:
        str. Beside ours, in brackets, is the paper's figure; a dagger counts
        trainings that failed, whose loss or gradient was not finite.
    """
    found = grid(results)
    columns = list(dict.fromkeys(cell.column for cell in cells))
    lines = [
        "| | " + " | ".join(columns) + " |",
        "|" + "---|" * (1 + len(columns)),
    ]
    for row in dict.fromkeys(cell.row for cell in cells):
        texts = []
        for column in columns:
            cell = [c for c in cells if (c.row, c.column) == (row, column)]
            text = described(found.get(row, {}).get(column, []))
            if cell and cell[0].paper is not None:
                text = f"{text} ({cell[0].paper})".strip()
            texts.append(text)
        lines.append(f"| {row} | {' | '.join(texts)} |")
    return "\n".join(lines) + "\n"


def described(results):
    """Mean and deviation of the trainings of one cell."""
    accuracies = [100 * r["top1"] for r in results if r["top1"] is not None]
    failed = len(results) - len(accuracies)
    words = []
    if len(accuracies) == 1:
        words.append(f"{accuracies[0]:.1f}")
    elif accuracies:
        deviation = np.std(accuracies, ddof=1)
        words.append(f"{np.mean(accuracies):.1f} ± {deviation:.1f}")
    if failed:
        words.append(f"† {failed} of {len(results)}")
    return " ".join(words)


def figure(study, results, path):
    """Top-1 by column, a line for each row; or by row, if there is one column.

    Every training is a dot, and a cross on the axis if it failed.
    """
    found = grid(results)
    columns = list(dict.fromkeys(r["column"] for r in results))
    drawing, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    if len(columns) == 1:
        places = list(found)
        series = {columns[0]: {row: found[row][columns[0]] for row in found}}
    else:
        places, series = columns, found
    for i, (name, cells) in enumerate(series.items()):
        # Side by side, so that none hides another.
        shift = 0.5 * ((i + 0.5) / len(series) - 0.5)
        line = []
        for place, trainings in cells.items():
            x = places.index(place) + shift
            good = [100 * r["top1"] for r in trainings if r["top1"] is not None]
            axes.plot([x] * len(good), good, ".", color=f"C{i}", alpha=0.4)
            failed = len(trainings) - len(good)
            axes.plot([x] * failed, [0] * failed, "x", color=f"C{i}")
            line.append((x, np.mean(good) if good else np.nan))
        style = "o-" if len(series) > 1 else "o"
        axes.plot(*zip(*line, strict=True), style, color=f"C{i}", label=name)
    if len(series) > 1:
        drawing.legend(loc="outside right upper", frameon=False)
    slanted = {"rotation": 20, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(
        range(len(places)), places, **({} if len(columns) > 1 else slanted)
    )
    axes.set(ylabel="top-1 of held-out images / %", title=study)
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    drawing.savefig(path, dpi=150)
    plt.close(drawing)


def trainings(jobs, folder, data_dir=None, strategy=None, processes=1):
    """Results of trainings, as they end.

    Args:
        jobs: list of pairs of a `Cell` and a seed.
        folder, data_dir, strategy: as for `train`.
        processes: int. Trainings at a time; more than 1 are on CPU cores, a
            core each, and small models are as fast on one as on two.

    Yields:
        Triples of cell, seed and result.
    """
    if processes == 1:
        for cell, seed in jobs:
            yield cell, seed, train(cell, seed, folder, data_dir, strategy)
        return
    with ProcessPoolExecutor(
        processes, get_context("spawn"), on_one_core
    ) as pool:
        under_way = {
            pool.submit(train, cell, seed, folder, data_dir): (cell, seed)
            for cell, seed in jobs
        }
        try:
            for training in as_completed(under_way):
                yield *under_way[training], training.result()
        finally:
            pool.shutdown(cancel_futures=True)


def on_one_core():
    """Readies a process; Ctrl-C lets it end the training that it is at."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def ablate(
    study,
    scale,
    folder,
    data_dir=None,
    strategy=None,
    seeds=None,
    processes=1,
):
    """Runs a study, or goes on with it.

    Args:
        study: str, a key of `STUDIES`.
        scale: `Scale`.
        folder: path. It ends up with a JSON file for each training,
            `results.json` with all of them, `table.md` and `figure.png`,
            which are written anew after each training.
        data_dir: path, where TensorFlow Datasets keeps its files.
        strategy: `tf.distribute.Strategy`; `None` is one device.
        seeds: int. Trainings of each cell; `None` is that of the scale.
        processes: int. Trainings at a time, as for `trainings`.

    Returns:
        List of dicts, as `train` returns them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    cells = STUDIES[study](scale)
    # All cells with the first seed come first: a table is soon there.
    jobs = [(c, seed) for seed in range(seeds or scale.seeds) for c in cells]
    found = {}
    for cell, seed, result in trainings(
        jobs, folder, data_dir, strategy, processes
    ):
        found[cell.name, seed] = result
        print(
            f"{len(found)} of {len(jobs)}: {cell.row}, {cell.column}, seed "
            f"{seed}: {described([result])}"
        )
        names = ((c.name, seed) for c, seed in jobs)
        results = [found[name] for name in names if name in found]
        write_whole(
            folder / "results.json", json.dumps(results, indent=1) + "\n"
        )
        write_whole(folder / "table.md", table(cells, results))
        figure(study, results, folder / "figure.png")
    return results


def command(
    study: tyro.conf.Positional[Literal[tuple(STUDIES)]],
    output: Path | None = None,
    scale: Literal[tuple(SCALES)] = "digits",
    seeds: int | None = None,
    data_dir: Path | None = None,
    strategy: Literal["auto", "one", "mirrored", "workers", "tpu"] = "auto",
    processes: int | None = None,
):
    """Runs a study of the paper, or goes on with it.

    Args:
        study: The study.
        output: Folder of the results; by default `studies/STUDY-SCALE`.
        scale: The paper's setting on ImageNet, or a small one on the digits.
        seeds: Trainings of each model.
        data_dir: Where TensorFlow Datasets keeps its files.
        strategy: Devices, as for training.train.
        processes: Trainings at a time, each on a CPU core of its own; by
            default as many as there are cores on the digits, and else 1, on
            the devices of the strategy.
    """
    for name, number in (("seeds", seeds), ("processes", processes)):
        if number is not None and number < 1:
            raise ValueError(
                f"--{name} must be at least 1. Received: {number}."
            )
    output = output or Path("studies") / f"{study}-{scale}"
    processes = processes or (os.cpu_count() if scale == "digits" else 1)
    ablate(
        study,
        SCALES[scale],
        output,
        data_dir,
        make_strategy(strategy),
        seeds,
        processes,
    )
    print((output / "table.md").read_text())


def main(argv=None):
    """Runs the command line: `argv`, or that of the process."""
    run(
        lambda: tyro.cli(
            command,
            prog="python -m training.studies",
            description=__doc__,
            args=argv,
        )
    )


if __name__ == "__main__":
    main()
