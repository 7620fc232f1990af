"""The folder of a run: claimed at the start, filled at the end."""

import csv
import dataclasses
import json
import statistics

import keras
import numpy as np
import tensorflow as tf

import keras_cait
from training.data.pipeline import evaluation_batches
from training.loop.checkpoints import write_whole
from training.metrics import answers


def forget_history(path, epoch):
    """Drops the rows of epochs that are run again."""
    if path.exists():
        lines = path.read_text().splitlines(keepends=True)
        kept = [row for row in lines[1:] if int(row.split(",")[0]) < epoch]
        write_whole(path, "".join(lines[:1] + kept))


def claim(output, recipe, chief=True):
    """Makes the run's folder, or checks that the run in it may go on."""
    output.mkdir(parents=True, exist_ok=True)
    if (output / "model.keras").exists():
        raise ValueError(
            f"{output} holds a finished run. Choose another --output, or "
            "delete the folder to start afresh."
        )
    ours = dataclasses.asdict(recipe)
    record = output / "recipe.json"
    if record.exists():
        theirs = json.loads(record.read_text())
        differing = [
            f"{name} {theirs.get(name)!r} (now {ours.get(name)!r})"
            for name in sorted(ours.keys() | theirs.keys())
            if ours.get(name) != theirs.get(name)
        ]
        if differing:
            raise ValueError(
                f"{output} holds a run of another recipe: "
                f"{', '.join(differing)}. Give the same recipe to go on with "
                "it, or another --output."
            )
    elif chief:
        write_whole(record, json.dumps(ours, indent=2) + "\n")


def evaluate(model, examples, batch_size=250):
    """Runs a model on all examples.

    Args:
        model: Keras model of images to logits or probabilities.
        examples: `training.data.Examples`.
        batch_size: int. Images of a batch.

    Returns:
        dict: `top1` and `top5`, in 0...1, and `confusion`, a
        `(classes, classes)` list of counts: labels in rows, predictions in
        columns.
    """
    batches = evaluation_batches(examples, tf.identity, batch_size)
    labels = np.concatenate([labels for _, labels, _ in batches])
    scores = model.predict(batches.map(lambda image, *_: image), verbose=0)
    # The last batch is padded.
    labels, scores = labels[: examples.count], scores[: examples.count]
    right = answers(scores, labels).right
    confusion = tf.math.confusion_matrix(
        labels, scores.argmax(axis=-1), num_classes=scores.shape[-1]
    )
    return {
        "top1": float(right[:, 0].mean()),
        "top5": float(right.any(axis=1).mean()),
        "confusion": confusion.numpy().tolist(),
    }


def finish(trainer, held_out, output):
    """Writes the trained model, its labels and its summary; model last."""
    model, recipe = trainer.average, trainer.recipe
    # A copy, which belongs to this process alone: the others take no part.
    config = {**model.get_config(), "classifier_activation": "softmax"}
    classifier = keras_cait.CaiT.from_config(config)
    classifier.set_weights(model.get_weights())
    evaluation = evaluate(classifier, held_out)
    with (output / "history.csv").open(newline="") as file:
        history = list(csv.DictReader(file))
    speeds = [float(row["images_per_second"]) for row in history]
    summary = {
        **evaluation,
        "raw_top1": float(history[-1]["val_raw_accuracy"]),
        "parameters": model.count_params(),
        "epochs": len(history),
        "steps": trainer.step,
        "devices": trainer.strategy.num_replicas_in_sync,
        "images_per_second": statistics.harmonic_mean(speeds),
        "training_hours": (
            trainer.step
            * recipe.global_batch_size
            / statistics.harmonic_mean(speeds)
            / 3600
        ),
        "keras": keras.__version__,
        "tensorflow": tf.__version__,
    }
    lines = [
        f'  "{key}": {json.dumps(value)}' for key, value in summary.items()
    ]
    write_whole(output / "summary.json", "{\n" + ",\n".join(lines) + "\n}\n")
    names = "".join(f"{name}\n" for name in held_out.class_names)
    (output / "labels.txt").write_text(names)
    write_pictures(held_out, output / "held_out")
    unfinished = output / "unfinished.keras"
    classifier.save(unfinished)
    unfinished.rename(output / "model.keras")
    print(
        f"{evaluation['top1']:.1%} of {held_out.count:,} held-out images are "
        f"right. The model is {output / 'model.keras'}"
    )


def write_pictures(examples, folder):
    """Writes up to 1000 examples as PNG files, one folder for each class."""
    for name in examples.class_names:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for index in range(0, examples.count, -(-examples.count // 1000)):
        image, label = examples.read(index)
        name = examples.class_names[int(label)]
        keras.utils.save_img(
            folder / name / f"{index:04}.png", image.numpy(), scale=False
        )
