"""Runs the paper's studies: tables and figures of many small trainings.

python -m training.studies depth --output studies/depth

python -m training.studies class-token --scale imagenet --data-dir DIR

A study is a grid of models, each trained with the same recipe and several
seeds. Run the same command again to resume it; finished trainings are kept.
"""

import json
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal

# First, as it explains imports that fail.
from keras_cait.command_line import Count, DataDir, require_tensorflow, run

# isort: split
import tensorflow as tf
from cyclopts import App, Parameter

from keras_cait.files import folder_path, locked, write_text
from training.loop.strategies import is_chief, make_strategy, worker_count
from training.options import StrategyName
from training.study.cells import SCALES, STUDIES, Scale, StudyName
from training.study.tables import described, figure, table
from training.study.trainings import check_results, trainings


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

    Raises:
        ValueError: as in `check_results` and `train`.
    """
    cells = STUDIES[study](scale)
    # The first seed of all cells comes first: a table is there soon.
    jobs = [(c, seed) for seed in range(seeds or scale.seeds) for c in cells]
    check_results(jobs, folder)
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
        if strategy and not is_chief(strategy):
            continue
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
        Parameter(
            help="Trainings of each model. Default: digits 3, ImageNet 1."
        ),
    ] = None,
    data_dir: DataDir = None,
    strategy: StrategyName = "auto",
    processes: Annotated[
        Count | None,
        Parameter(
            help="Trainings at a time, each on one CPU core. Default: one per "
            "core on the digits without --strategy; otherwise 1, on the "
            "devices of the strategy."
        ),
    ] = None,
) -> None:
    """Runs a study of the paper, or resumes it."""
    require_tensorflow()
    output = folder_path(output or Path("studies") / f"{study}-{scale}")
    devices = make_strategy(strategy)
    is_alone = strategy in ("auto", "one") and worker_count(devices) == 1
    is_small = is_alone and scale == "digits" and strategy == "auto"
    processes = processes or ((os.cpu_count() or 1) if is_small else 1)
    if processes > 1 and not is_alone:
        raise ValueError(
            f"{processes} trainings at a time run on the CPU. Add --processes "
            f"1 to train on the devices of --strategy {strategy}."
        )
    chief = is_chief(devices)
    with locked(output) if chief else nullcontext():
        run_study(
            study,
            SCALES[scale],
            output,
            data_dir,
            devices,
            seeds,
            processes,
        )
    if chief:
        print((output / "table.md").read_text())


if __name__ == "__main__":
    run(app)
