"""Accuracy of models on a data set, beside what is published of them.

python -m training.evaluate --variant S24 --data imagenet2012 --data-dir DIR
python -m training.evaluate --all --data imagenet2012_real --data-dir DIR
python -m training.evaluate --weights runs/digits --data digits
"""

import json
import os
import time
from pathlib import Path
from typing import Literal

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
import tyro

from keras_cait.models import VARIANTS
from keras_cait.weights import CHECKPOINTS, nearest_checkpoint
from training.classifiers import load_classifier, published
from training.command import run
from training.data.datasets import load
from training.data.pipeline import centre_crop, evaluation_batches
from training.loop.strategies import is_chief, lost_workers, make_strategy
from training.metrics import Answers, answers, joined, metrics

# Top-1 and top-5 in percent that timm measured of the published models, by
# data set; those of imagenet2012 are in CHECKPOINTS. From results-imagenet-
# real.csv and results-imagenetv2-matched-frequency.csv of
# huggingface/pytorch-image-models.
MEASURED = {
    "imagenet2012": {
        key: (row.measured_top_1, row.measured_top_5)
        for key, row in CHECKPOINTS.items()
    },
    "imagenet2012_real": {
        ("XXS24", 224): (85.240, 96.714),
        ("XXS24", 384): (87.414, 97.619),
        ("XXS36", 224): (86.323, 97.113),
        ("XXS36", 384): (88.161, 97.899),
        ("XS24", 384): (89.169, 98.285),
        ("S24", 224): (88.447, 97.950),
        ("S24", 384): (89.510, 98.362),
        ("S36", 384): (89.829, 98.431),
        ("M36", 384): (90.049, 98.484),
        ("M48", 448): (90.181, 98.480),
    },
    "imagenet_v2": {
        ("XXS24", 224): (67.29, 87.51),
        ("XXS24", 384): (70.55, 89.77),
        ("XXS36", 224): (68.37, 88.60),
        ("XXS36", 384): (72.14, 90.78),
        ("XS24", 384): (74.11, 91.92),
        ("S24", 224): (73.01, 91.20),
        ("S24", 384): (75.38, 92.52),
        ("S36", 384): (76.01, 92.92),
        ("M36", 384): (76.37, 93.04),
        ("M48", 448): (76.84, 93.35),
    },
}


@lost_workers()
def measure(
    classifier,
    examples,
    settings,
    path,
    batch_size=64,
    strategy=None,
    save_seconds=60.0,
):
    """Evaluates a classifier, or goes on with an interrupted evaluation.

    Args:
        classifier: `training.classifiers.Classifier`.
        examples: `training.data.Examples`.
        settings: dict of what the result depends on; it is part of it.
        path: path of the JSON file to write. Answers so far are beside it.
        batch_size: int. Images of a batch, over all devices.
        strategy: `tf.distribute.Strategy` in whose scope the classifier was
            made; `None` is one device. Workers share the folder of the file.
        save_seconds: float. Seconds between savings of the answers so far.

    Returns:
        dict: the settings, `metrics`, and `images_per_second` of the model
        without the reading of pictures and without the first batch.

    Raises:
        ValueError: the file is of other settings or weights, or the batch
            does not divide into the devices.
    """
    strategy = strategy or make_strategy("one")
    devices = strategy.num_replicas_in_sync
    if batch_size % devices:
        raise ValueError(
            "batch_size must divide into the devices. Received: "
            f"batch_size={batch_size} for {devices} devices."
        )
    settings = {**settings, "weights": classifier.identity}
    unfinished = path.with_suffix(".unfinished.npz")
    if path.exists():
        result = json.loads(path.read_text())
        check_settings(settings, result, path)
        return result
    chief = is_chief(strategy)
    found = []
    if unfinished.exists():
        with np.load(unfinished) as file:
            check_settings(settings, json.loads(str(file["settings"])), path)
            found.append(Answers(*(file[name] for name in Answers._fields)))
    done = sum(len(part.right) for part in found)
    saved = time.perf_counter()
    seconds, timed = 0.0, 0
    transform = centre_crop(classifier.size, settings["crop_ratio"])
    batches = strategy.distribute_datasets_from_function(
        lambda context: evaluation_batches(
            examples, transform, batch_size, context, done
        )
    )
    for step, (images, *known) in enumerate(batches):
        start = time.perf_counter()
        answered = strategy.run(classifier.predict, args=(images,))
        probabilities, labels, weights = (
            strategy.gather(values, axis=0).numpy()
            for values in (answered, *known)
        )
        known_classes = len(examples.class_names)
        if probabilities.shape[-1] != known_classes:
            raise ValueError(
                f"The model tells {probabilities.shape[-1]} classes apart, but "
                f"{settings['data']} has {known_classes}. Evaluate on pictures "
                "of the classes that it was trained on."
            )
        real = weights > 0  # the last batch is padded
        if step:
            seconds += time.perf_counter() - start
            timed += int(real.sum())
        found.append(answers(probabilities[real], labels[real]))
        if chief and time.perf_counter() - saved >= save_seconds:
            saved = time.perf_counter()
            save_answers(joined(found), settings, unfinished)
    result = {
        **settings,
        **metrics(joined(found)),
        "images_per_second": timed / seconds if timed else None,
        "batch_size": batch_size,
        "devices": devices,
        "keras": keras.__version__,
        "tensorflow": tf.__version__,
    }
    if chief:
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(result, indent=2) + "\n")
        partial.rename(path)
        unfinished.unlink(missing_ok=True)
    return result


def save_answers(found, settings, path):
    """Writes the answers so far, in a file that is never there in part."""
    partial = path.with_suffix(".partial.npz")
    np.savez(partial, settings=json.dumps(settings), **found._asdict())
    partial.rename(path)


def check_settings(ours, theirs, path):
    differing = [
        f"{name} {theirs.get(name)!r} (now {value!r})"
        for name, value in ours.items()
        if theirs.get(name) != value
    ]
    if differing:
        raise ValueError(
            f"{path} is of another evaluation: {', '.join(differing)}. Choose "
            "another --output, or delete it."
        )


def table(results):
    """Results as a Markdown table, beside what timm and the authors publish.

    Args:
        results: list of dicts, as of `measure`.

    Returns:
        str. Figures in percent; differences in points.
    """
    rows = [
        "| model | data | images | top-1 | timm | difference | authors "
        "| top-5 | timm | difference | ECE | images/s |",
        "|" + "---|" * 12,
    ]
    for result in results:
        key = tuple(result["checkpoint"] or ())
        timm = MEASURED.get(result["data"], {}).get(key, (None, None))
        authors = None
        if key and result["data"] == "imagenet2012":
            authors = CHECKPOINTS[key].published_top_1
        top1, top5 = 100 * result["top1"], 100 * result["top5"]
        cells = [
            result["model"],
            result["data"],
            f"{result['images']:,}",
            *beside(top1, timm[0]),
            "" if authors is None else f"{authors:.1f}",
            *beside(top5, timm[1]),
            f"{100 * result['ece']:.2f}",
            number(result["images_per_second"], ".1f"),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def beside(ours, theirs):
    """Our figure, another one and the difference, as text."""
    difference = None if theirs is None else ours - theirs
    return (
        f"{ours:.3f}",
        number(theirs, ".3f"),
        number(difference, "+.3f"),
    )


def number(value, form):
    return "" if value is None else format(value, form)


def command(
    weights: str = "imagenet",
    variant: Literal[tuple(VARIANTS)] = "S24",
    image_size: int | None = None,
    all: bool = False,
    data: str = "imagenet2012",
    data_dir: Path | None = None,
    output: Path = Path("evaluation"),
    batch_size: int = 64,
    crop_ratio: float = 1.0,
    precision: Literal[
        "float32", "mixed_bfloat16", "mixed_float16"
    ] = "float32",
    raw: bool = False,
    strategy: Literal["auto", "one", "mirrored", "workers", "tpu"] = "auto",
):
    """Evaluates models; an evaluation that was interrupted goes on.

    Args:
        weights: A .keras, .safetensors or .tflite file, the folder of a
            training run or of a SavedModel, or `imagenet`, the published
            weights of a variant.
        variant: Variant of the published weights.
        image_size: Of the published weights, those of the nearest size; by
            default the smallest.
        all: Evaluate all ten published models.
        data: As for training.train, of which the held-out pictures are taken;
            imagenet2012, imagenet2012_real (its pictures may have any number
            of labels) and imagenet_v2 are compared with published figures.
        data_dir: Where TensorFlow Datasets keeps its files.
        output: Folder for the results: a JSON file for each model and set.
        batch_size: Images of a batch.
        crop_ratio: Share of the shorter side that is kept.
        precision: Dtype policy. The authors advise float32 for M48.
        raw: Of a training run, the weights of the last step instead of the
            averaged ones.
        strategy: Devices, as for training.train; the batch is over all.
    """
    if batch_size < 1:
        raise ValueError(
            f"--batch-size must be at least 1. Received: {batch_size}."
        )
    strategy = make_strategy(strategy)
    examples = load(data, "held_out", data_dir)
    output.mkdir(parents=True, exist_ok=True)
    models = [(weights, None)]
    if weights == "imagenet":
        size = image_size or VARIANTS[variant].image_size
        models = [(None, nearest_checkpoint(variant, (size, size)))]
    if all:
        models = [(None, checkpoint) for checkpoint in CHECKPOINTS.values()]
    results = []
    for path, checkpoint in models:
        with strategy.scope():
            if checkpoint:
                classifier = published(checkpoint, precision)
                name = f"CaiT-{checkpoint.variant} {checkpoint.image_size}"
            else:
                classifier = load_classifier(path, precision, raw)
                name = f"{path} raw" if raw else path
        settings = {
            "model": name,
            "checkpoint": checkpoint
            and [checkpoint.variant, checkpoint.image_size],
            "data": data,
            "crop_ratio": crop_ratio,
            "image_size": list(classifier.size),
            "precision": precision,
        }
        file = "".join(
            c if c.isalnum() else "_" for c in f"{data} {name} {precision}"
        )
        results.append(
            measure(
                classifier,
                examples,
                settings,
                output / f"{file}.json",
                batch_size,
                strategy,
            )
        )
        print(table(results[-1:]))
    if is_chief(strategy):
        all_results = [
            json.loads(file.read_text())
            for file in sorted(output.glob("*.json"))
        ]
        (output / "table.md").write_text(table(all_results) + "\n")


def main(argv=None):
    """Runs the command line: `argv`, or that of the process."""
    run(
        lambda: tyro.cli(
            command,
            prog="python -m training.evaluate",
            description=__doc__,
            args=argv,
        )
    )


if __name__ == "__main__":
    main()
