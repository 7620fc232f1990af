"""Measures the accuracy of models, and compares it with published figures.

python -m training.evaluate --model S24 --data imagenet2012 --data-dir DIR

python -m training.evaluate --all --data imagenet2012_real --data-dir DIR

python -m training.evaluate --model runs/digits --data digits

python -m training.evaluate --predictions predictions
"""

import json
from functools import cache
from pathlib import Path
from typing import Annotated, Any

# First, as it explains imports that fail.
from keras_cait.command_line import (
    BatchSize,
    CropRatio,
    Data,
    DataDir,
    ImageSize,
    MaxUnreadable,
    Precision,
    Variant,
    require_tensorflow,
    run,
)

# isort: split
from cyclopts import App, Parameter

from keras_cait.datasets import split_of
from keras_cait.files import (
    file_name,
    folder_path,
    locked,
    read_json,
    write_text,
)
from keras_cait.labels import find_labels
from keras_cait.loading import identity, published
from keras_cait.pretrained import PRETRAINED
from training.data.datasets import Examples, load
from training.evaluation import (
    check_settings,
    figures,
    load_for_evaluation,
    measure,
)
from training.evaluation_table import all_results, table
from training.loop.strategies import is_chief, make_strategy
from training.options import Raw, StrategyName
from training.prediction_files import read_predictions

app = App(name="python -m training.evaluate", help=__doc__, version_flags=[])


@app.default
def evaluate(
    *,
    model: Annotated[
        list[str] | None,
        Parameter(
            negative=(),
            help="Published model (S24, or S24-384 at another size), run "
            "folder, .keras file, weights file, SavedModel or .tflite file. "
            "May be repeated.",
        ),
    ] = None,
    all: Annotated[
        bool, Parameter(negative=(), help="Evaluate all published models.")
    ] = False,
    predictions: Annotated[
        Path | None,
        Parameter(
            help="Evaluate the output of python -m export predict --data. Only "
            "--output and --max-unreadable apply to it."
        ),
    ] = None,
    data: Data = "imagenet2012",
    data_dir: DataDir = None,
    output: Annotated[
        Path,
        Parameter(help="Folder for a JSON file per model, and table.md."),
    ] = Path("evaluation"),
    variant: Variant = None,
    image_size: ImageSize = None,
    batch_size: BatchSize = 64,
    crop_ratio: CropRatio = 1.0,
    precision: Precision = "float32",
    raw: Raw = False,
    max_unreadable: MaxUnreadable = 0,
    strategy: StrategyName = "auto",
) -> None:
    """Evaluates models, or resumes interrupted evaluations.

    The images are those of the dataset's validation split. Results on
    imagenet2012, imagenet2012_real (any number of labels per image) and
    imagenet_v2 are shown beside the published ones. The authors
    advise float32 for M48; exported files have their own precision.
    """
    require_tensorflow()
    if [bool(model), all, predictions is not None].count(True) != 1:
        raise ValueError(
            "Give --model MODEL (may be repeated), --all, or --predictions "
            "FOLDER."
        )
    folder_path(output)
    if predictions:
        result = measure_predictions(predictions, output, max_unreadable)
        print(table([result]))
        write_text(output / "table.md", table(all_results(output)) + "\n")
        return
    sources = model or [f"{name}-{size}" for name, size in PRETRAINED]
    distribution = make_strategy(strategy)

    @cache  # models share a dataset, unless they are runs of other splits
    def examples_of(**part: Any) -> Examples:
        examples = load(data, "validation", data_dir, max_unreadable, **part)
        if part:
            print(
                f"{data} has no subfolder validation: measuring "
                f"{examples.count:,} images, {part['validation_fraction']:.3g} "
                "of each class. To measure all, such as those of a test set, "
                "move the classes into that subfolder."
            )
        return examples

    for source in sources:
        split = split_of(source, data)
        examples = examples_of(**split)
        # More would be padding.
        replicas = distribution.num_replicas_in_sync
        size = min(batch_size, -(-examples.count // replicas) * replicas)
        with distribution.scope():
            loaded = load_for_evaluation(
                source, precision, image_size, variant, raw
            )
        names = names_of(source, image_size)
        if raw:
            names["model"] += " raw"
        settings = {
            **names,
            "data": data,
            "crop_ratio": crop_ratio,
            "image_size": list(loaded.image_size),
            "precision": precision,
            **split,
            "weights": identity(source),
        }
        path = result_file(output, data, names["model"], precision)
        result = measure(
            loaded,
            examples,
            settings,
            path,
            size,
            distribution,
            labels=find_labels(source),
        )
        print(table([result]))
    if is_chief(distribution):
        write_text(output / "table.md", table(all_results(output)) + "\n")


def measure_predictions(
    folder: Path, output: Path, max_unreadable: int = 0
) -> dict[str, Any]:
    """Evaluates the output of `python -m export predict --data`.

    Args:
        folder: the predictions.
        output: folder for the JSON file.
        max_unreadable: as in `read_predictions`.

    Returns:
        As of `measure`, without what only it knows. The speed is `None`.

    Raises:
        ValueError: as in `read_predictions`; or the JSON file is the result of
            other predictions.
    """
    found, job, unreadable = read_predictions(folder, max_unreadable)
    data = job["data"]
    if job["split"] != "validation":
        data += f" {job['split']}"
    row, size = published(job["model"]), job["image_size"][0]
    other_size = size if row and row.image_size != size else None
    settings = {
        **names_of(job["model"], other_size),
        "data": data,
        "crop_ratio": 1.0,
        "image_size": job["image_size"],
        "weights": job["weights"],
        "unreadable": unreadable,
    }
    path = result_file(output, data, settings["model"], "predictions")
    with locked(path):
        if path.exists():
            check_settings(settings, read_json(path), path)
        result = {
            **settings,
            **figures(found),
            "images_per_second": None,
        }
        write_text(path, json.dumps(result, indent=2) + "\n")
    return result


def names_of(source: str, image_size: int | None) -> dict[str, Any]:
    """A model's name in a result, and that of a published one.

    Example:
    >>> names_of("S24", 384)
    {'model': 'S24-224 at 384', 'published': ['S24', 224]}
    """
    row = published(source)
    name = f"{row.variant}-{row.image_size}" if row else source
    return {
        "model": f"{name} at {image_size}" if image_size else name,
        "published": row and [row.variant, row.image_size],
    }


def result_file(output: Path, *words: str) -> Path:
    """The JSON file of a result."""
    return output / f"{file_name(' '.join(words))}.json"


if __name__ == "__main__":
    run(app)
