"""Runs the paper's studies: tables and figures of many small trainings.

python -m training.studies depth --output studies/depth
python -m training.studies class-token --scale imagenet --data-dir DIR

A study is a grid of models, each trained with the same recipe and several
seeds. Run the same command again to resume it; finished trainings are kept.
"""

import gc
import json
import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any, Literal

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# First, as it explains imports that fail.
from keras_cait.command_line import Count, DataDir, require_tensorflow, run

# isort: split
import keras
import matplotlib

matplotlib.use("Agg")

import numpy as np
import tensorflow as tf
from cyclopts import App, Parameter
from matplotlib import pyplot as plt

from keras_cait.baselines import SIZES, ResidualBlock, ViT
from keras_cait.files import folder_path, locked, read_json, write_text
from training.data.datasets import load
from training.data.pipeline import (
    evaluation_transform,
    naming_unreadable,
    steps_per_epoch,
    training_data,
    validation_data,
)
from training.loop.checkpoints import Checkpoints
from training.loop.distillation import make_loss
from training.loop.interruption import lost_workers
from training.loop.optimizers import make_optimizer
from training.loop.stacking import Stack, stacked
from training.loop.strategies import is_chief, make_strategy, worker_count
from training.loop.trainer import Trainer
from training.options import StrategyName
from training.recipes import QUICKSTART, RECIPES, Recipe


@dataclass(frozen=True)
class Cell:
    """One model of a study and how it is trained.

    Attributes:
        row, column: its place in the table.
        model: arguments of `keras_cait.baselines.ViT`.
        recipe: the recipe; its fields of the model are not used.
        paper: the paper's top-1 in percent; `None` where it is not known.
    """

    row: str
    column: str
    model: dict[str, Any]
    recipe: Recipe
    paper: float | None = None

    @property
    def name(self) -> str:
        words = f"{self.row} {self.column}"
        return "".join(c if c.isalnum() else "_" for c in words)


@dataclass(frozen=True)
class Scale:
    """The setting of all studies.

    Attributes:
        recipe: the recipe of all trainings.
        model: arguments of `ViT` that all models share.
        depths: numbers of blocks in the study of depth.
        drop_path_rates: stochastic depth for each of them.
        seeds: trainings of each model, with seeds 0, 1, ...
        paper: the paper's top-1 for each of the depths, by row.
    """

    recipe: Recipe
    model: dict[str, Any]
    depths: tuple[int, ...]
    drop_path_rates: tuple[float, ...]
    seeds: int = 1
    paper: dict[str, tuple[float, ...]] = field(default_factory=dict)


# Table 1 of the paper: top-1 in percent on ImageNet-1k of DeiT-S with 12, 18,
# 24 and 36 blocks.
PAPER = {
    "pre-norm": (79.9, 80.7, 81.0, 81.9),
    "pre-norm, stochastic depth 0.05": (79.9, 80.1, 78.9, 78.9),
    "ReZero": (78.3, 80.1, 80.8, 81.6),
    "Fixup": (80.7, 82.0, 82.3, 82.4),
    "scalar": (80.4, 81.6, 81.1, 81.6),
    "LayerScale": (80.5, 81.7, 82.4, 82.9),
}

SCALES = {
    # 4 patches of 14 pixels, and a learning rate at which depth is hard: at a
    # sixth of it, all scalings learn equally well.
    "digits": Scale(
        replace(
            QUICKSTART,
            epochs=4,
            global_batch_size=50,
            learning_rate=0.1,
            warmup_epochs=1.0,
            weight_decay=0.05,
            clip_norm=0.0,
            ema_momentum=0.98,
            ema_warmup=False,
            random_erasing=0.0,
            mixup_alpha=0.0,
            cutmix_alpha=0.0,
            evaluation_epochs=4,
        ),
        {
            "embed_dim": 32,
            "num_heads": 4,
            "patch_size": 14,
            "input_shape": (28, 28, 3),
        },
        depths=(12, 24, 36),
        drop_path_rates=(0.0, 0.0, 0.0),
        seeds=3,
        paper={row: (v[0], v[2], v[3]) for row, v in PAPER.items()},
    ),
    "imagenet": Scale(
        # The baseline's 79.9 is DeiT-S after 300 epochs (arXiv 2012.12877).
        replace(RECIPES["s24-224"].resolved(), epochs=300),
        {"embed_dim": 384, "num_heads": SIZES["S"]["num_heads"]},
        depths=(12, 18, 24, 36),
        # The paper adapts stochastic depth to the number of blocks.
        drop_path_rates=(0.05, 0.1, 0.2, 0.25),
        paper=PAPER,
    ),
}


def layer_scale(depth: int) -> dict[str, Any]:
    """The paper's choice: the deeper the model, the closer to 0."""
    start = 0.1 if depth <= 18 else 1e-5 if depth <= 24 else 1e-6
    return {"residual_scaling": "layer_scale", "init_values": start}


def depth(scale: Scale) -> list[Cell]:
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
        # Figure 2 (b): as their authors proposed them.
        for row in ("ReZero", "Fixup"):
            rows[f"{row}, no norm, no warm-up"] = {
                **rows[row],
                "pre_norm": False,
                "warmup": False,
            }
        if rate > 0.05:  # otherwise it is the first row
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


def class_token(scale: Scale) -> list[Cell]:
    """Table 2: the class token's entry, average pooling, or class attention."""
    rows: dict[str, dict[str, Any]] = {
        f"before block {entry}": {"class_token_depth": entry}
        for entry in (0, 2, 4, 8, 10, 11)
    }
    rows["average pooling"] = {"pooling": "avg"}
    for layers in (1, 2, 3):
        rows[f"after 12, {layers} of class attention"] = {
            "class_attention_depth": layers
        }
    return one_column(scale, 12, rows)


def layerscale_init(scale: Scale) -> list[Cell]:
    """Initial gammas of LayerScale, at the smallest and the largest depth."""
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


def talking_heads(scale: Scale) -> list[Cell]:
    """From DeiT-S to CaiT step by step; talking heads come last."""
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


def class_attention_depth(scale: Scale) -> list[Cell]:
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


def one_column(
    scale: Scale, blocks: int, rows: dict[str, dict[str, Any]]
) -> list[Cell]:
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


def cell(
    scale: Scale,
    row: str,
    column: str,
    paper: float | None = None,
    warmup: bool = True,
    **model: Any,
) -> Cell:
    recipe = scale.recipe
    if not warmup:
        recipe = replace(recipe, warmup_epochs=0.0)
    return Cell(row, column, scale.model | model, recipe, paper)


StudyName = Literal[
    "depth",
    "class-token",
    "layerscale-init",
    "talking-heads",
    "class-attention-depth",
]
STUDIES: dict[StudyName, Callable[[Scale], list[Cell]]] = {
    "depth": depth,
    "class-token": class_token,
    "layerscale-init": layerscale_init,
    "talking-heads": talking_heads,
    "class-attention-depth": class_attention_depth,
}


@lost_workers()
def train(
    cell: Cell,
    seed: int,
    folder: Path,
    data_dir: Path | None = None,
    strategy: tf.distribute.Strategy | None = None,
    save_seconds: float = 600.0,
) -> dict[str, Any]:
    """Trains one cell with one seed, unless its result exists.

    Args:
        cell: the cell.
        seed: the seed of the recipe.
        folder: gets the result, `NAME-SEED.json`, and checkpoints until the
            training is finished.
        data_dir: folder in which TensorFlow Datasets keeps its files.
        strategy: devices; `None` is one.
        save_seconds: seconds between checkpoints, at the end of an epoch.

    Returns:
        The cell; `top1` of the EMA weights and `raw_top1` on the validation
        images, in 0...1; `loss` and `accuracy` of the last epoch of training;
        `failed_at_step`, `None` unless a loss or gradient was not finite, which
        ends the training with both top-1 `None`; `gammas`, the mean size of the
        multipliers of each block's two branches; `minutes` since the last
        start; versions.

    Raises:
        ValueError: the file is the result of another cell.
    """
    path = folder / f"{cell.name}-{seed}.json"
    recipe = replace(cell.recipe, seed=seed)
    values = asdict(recipe)
    del values["variant"]  # the architecture is the cell's
    setting = json.loads(json.dumps({"model": cell.model, "recipe": values}))
    if path.exists():
        result = read_json(path, [*setting, "row", "column", "top1"])
        # Earlier versions lack fields, and trained with what is their default.
        result["recipe"] = asdict(Recipe()) | result["recipe"]
        del result["recipe"]["variant"]
        if any(result[key] != value for key, value in setting.items()):
            raise ValueError(
                f"{path} is the result of other settings. Choose another "
                "--output, or delete it."
            )
        return result
    began = time.perf_counter()
    distribution = strategy or make_strategy("one")
    recipe.check_devices(
        distribution.num_replicas_in_sync, worker_count(distribution)
    )
    keras.backend.clear_session()
    gc.collect()  # the graphs of the previous cell
    keras.utils.set_random_seed(seed)
    keras.config.set_dtype_policy(recipe.precision)
    examples = load(recipe.data, "train", data_dir, **recipe.split())
    validation = load(recipe.data, "validation", data_dir, **recipe.split())
    classes = len(examples.class_names)
    steps = steps_per_epoch(examples, recipe)

    def build() -> keras.Model:
        return stacked(
            ViT(**cell.model, classes=classes, classifier_activation=None)
        )

    with distribution.scope():
        model, ema_model = build(), build()
        loss = make_loss(recipe, classes)
        optimizer = make_optimizer(recipe, model, steps)
    trainer = Trainer(recipe, distribution, model, ema_model, optimizer, loss)
    unfinished = folder / f"{cell.name}-{seed}"
    unfinished.mkdir(parents=True, exist_ok=True)
    with Checkpoints(
        trainer.state, unfinished, is_chief(distribution), 1
    ) as checkpoints:
        checkpoints.restore()
        saved = time.perf_counter()
        batches = training_data(
            recipe, distribution, examples, trainer.step, unfinished
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
        "gammas": gammas(ema_model),
        **setting,
    }
    if trainer.nonfinite >= 0:
        result["failed_at_step"] = trainer.nonfinite
    else:
        with naming_unreadable(validation, evaluation_transform(recipe)):
            accuracy = trainer.evaluate(
                validation_data(recipe, distribution, validation)
            )
        result["top1"] = accuracy["val_accuracy"]
        result["raw_top1"] = accuracy["val_raw_accuracy"]
    result["minutes"] = (time.perf_counter() - began) / 60
    result["keras"] = keras.__version__
    result["tensorflow"] = tf.__version__
    if is_chief(distribution):
        write_text(path, json.dumps(result, indent=2) + "\n")
        shutil.rmtree(unfinished)
    return result


def finite(value: float) -> float | None:
    """The value, or `None`, which JSON can hold."""
    return value if math.isfinite(value) else None


def gammas(model: keras.Model) -> list[list[float]] | None:
    """Mean size of the multipliers of the branches, a pair per block."""
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


def grid(
    results: Iterable[dict[str, Any]],
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Results by row and column, in their order."""
    found: dict[str, dict[str, list]] = {}
    for result in results:
        row = found.setdefault(result["row"], {})
        row.setdefault(result["column"], []).append(result)
    return found


def table(cells: Sequence[Cell], results: Iterable[dict[str, Any]]) -> str:
    """A Markdown table: top-1 in percent, mean and deviation over seeds.

    The paper's figure is in parentheses. A dagger counts failed trainings,
    whose loss or gradient was not finite.

    Args:
        cells: all cells of the study.
        results: results of `train`; some may be missing.
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


def described(results: Sequence[dict[str, Any]]) -> str:
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


def figure(study: str, results: Sequence[dict[str, Any]], path: Path) -> None:
    """Draws top-1 by column, with a line per row; or by row, of one column.

    Every training is a dot, or a cross on the axis if it failed.
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
        # Side by side: none hides another.
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
    axes.set(ylabel="top-1 on validation images / %", title=study)
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    drawing.savefig(path, dpi=150)
    plt.close(drawing)


def trainings(
    jobs: Sequence[tuple[Cell, int]],
    folder: Path,
    data_dir: Path | None = None,
    strategy: tf.distribute.Strategy | None = None,
    processes: int = 1,
) -> Iterator[tuple[Cell, int, dict[str, Any]]]:
    """Runs trainings and yields their results as they end.

    Args:
        jobs: pairs of a cell and a seed.
        folder, data_dir, strategy: as for `train`.
        processes: trainings at a time. More than one run on the CPU, with one
            core each: small models are just as fast on one as on two.

    Yields:
        Cell, seed and result.
    """
    if processes == 1:
        for cell, seed in jobs:
            yield cell, seed, train(cell, seed, folder, data_dir, strategy)
        return
    with ProcessPoolExecutor(
        processes, get_context("spawn"), on_one_core
    ) as pool:
        running = {
            pool.submit(train, cell, seed, folder, data_dir): (cell, seed)
            for cell, seed in jobs
        }
        try:
            for training in as_completed(running):
                yield *running[training], training.result()
        finally:
            pool.shutdown(cancel_futures=True)


def on_one_core() -> None:
    """Prepares a process; Ctrl-C lets it finish its current training."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def run_study(
    study: StudyName,
    scale: Scale,
    folder: Path,
    data_dir: Path | None = None,
    strategy: tf.distribute.Strategy | None = None,
    seeds: int | None = None,
    processes: int = 1,
) -> list[dict[str, Any]]:
    """Runs a study, or resumes it.

    Args:
        study: key of `STUDIES`.
        scale: the setting.
        folder: gets a JSON file per training; and `results.json` with all of
            them, `table.md` and `figure.png`, rewritten after each training.
        data_dir: folder in which TensorFlow Datasets keeps its files.
        strategy: devices; `None` is one.
        seeds: trainings of each cell; `None` is the scale's number.
        processes: trainings at a time, as for `trainings`.

    Returns:
        The results of `train`.
    """
    cells = STUDIES[study](scale)
    # The first seed of all cells comes first: a table is there soon.
    jobs = [(c, seed) for seed in range(seeds or scale.seeds) for c in cells]
    found: dict[tuple[str, int], dict[str, Any]] = {}
    results: list[dict[str, Any]] = []
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
        write_text(
            folder / "results.json", json.dumps(results, indent=1) + "\n"
        )
        write_text(folder / "table.md", table(cells, results))
        figure(study, results, folder / "figure.png")
    return results


app = App(name="python -m training.studies", help=__doc__, version_flags=[])


@app.default
def studies(
    study: StudyName,
    /,
    *,
    output: Annotated[
        Path | None,
        Parameter(help="Folder of the results. Default: studies/STUDY-SCALE."),
    ] = None,
    scale: Annotated[
        Literal["digits", "imagenet"],
        Parameter(
            help="Setting: a small one on the digits, or the paper's on "
            "ImageNet."
        ),
    ] = "digits",
    seeds: Annotated[
        Count | None,
        Parameter(help="Trainings of each model. Default: digits 3, else 1."),
    ] = None,
    data_dir: DataDir = None,
    strategy: StrategyName = "auto",
    processes: Annotated[
        Count | None,
        Parameter(
            help="Trainings at a time, each on one CPU core. Default: on the "
            "digits as many as there are cores; otherwise 1, on the devices of "
            "the strategy."
        ),
    ] = None,
) -> None:
    """Runs a study of the paper, or resumes it."""
    require_tensorflow()
    output = folder_path(output or Path("studies") / f"{study}-{scale}")
    processes = processes or ((os.cpu_count() or 1) if scale == "digits" else 1)
    devices = make_strategy(strategy)
    with locked(output) if is_chief(devices) else nullcontext():
        run_study(
            study,
            SCALES[scale],
            output,
            data_dir,
            devices,
            seeds,
            processes,
        )
    print((output / "table.md").read_text())


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line: `argv`, or that of the process."""
    run(app, argv)


if __name__ == "__main__":
    main()
