"""Trains a CaiT: `python -m training.train quickstart --output runs/digits`.

The same command goes on where an interrupted run stopped. A finished run is
never overwritten.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import tensorflow as tf
import tyro

import keras_cait
from training.augmentation import random_affine
from training.command import run
from training.data import load, training_batches
from training.evaluate import evaluate
from training.optimization import adamw, decays
from training.recipes import RECIPES


def train(recipe, output):
    """Trains a recipe to its end and leaves the run in a folder.

    Args:
        recipe: `Recipe`.
        output: path of the run's folder; it is made, or an interrupted run of
            the same recipe in it goes on. It ends up with `model.keras` (the
            averaged weights, with softmax), `labels.txt`, `history.csv`,
            `evaluation.json`, `recipe.json`, `checkpoints/` and
            `tensorboard/`.

    Raises:
        ValueError: the folder holds a finished run, or one of another recipe.
        OSError: the folder cannot be written.
    """
    claim(output, recipe)
    keras.utils.set_random_seed(recipe.seed)
    examples = load(recipe.data, "train")
    held_out = load(recipe.data, "held_out")
    steps_per_epoch = examples.count // recipe.global_batch_size

    model, average = build(recipe, examples), build(recipe, examples)
    average.set_weights(model.get_weights())
    optimizer = adamw(recipe, model.trainable_variables, steps_per_epoch)
    step = tf.Variable(0, dtype=tf.int64, trainable=False)
    metrics = [keras.metrics.Mean("loss"), keras.metrics.Mean("accuracy")]
    train_step = make_train_step(
        recipe, model, average, optimizer, step, metrics
    )

    checkpoints = tf.train.CheckpointManager(
        tf.train.Checkpoint(
            model=model, average=average, optimizer=optimizer, step=step
        ),
        output / "checkpoints",
        max_to_keep=2,
        step_counter=step,
    )
    if checkpoints.restore_or_initialize():
        print(f"Going on at step {step.numpy()}, from {output / 'checkpoints'}")
    describe(recipe, examples, model, steps_per_epoch)

    model.compile(optimizer)  # for callbacks that look for model.optimizer
    callbacks = keras.callbacks.CallbackList(
        [
            keras.callbacks.CSVLogger(output / "history.csv", append=True),
            keras.callbacks.TensorBoard(output / "tensorboard"),
        ],
        add_progbar=True,
        model=model,
        epochs=recipe.epochs,
        steps=steps_per_epoch,
        verbose=1 if sys.stdout.isatty() else 2,
    )
    callbacks.on_train_begin()
    for epoch in range(int(step) // steps_per_epoch, recipe.epochs):
        callbacks.on_epoch_begin(epoch)
        for metric in metrics:
            metric.reset_state()
        steps = range(epoch * steps_per_epoch, (epoch + 1) * steps_per_epoch)
        batches = training_batches(
            examples,
            augment(recipe),
            recipe.global_batch_size,
            recipe.seed,
            steps,
        )
        for i, batch in enumerate(batches):
            callbacks.on_train_batch_begin(i)
            train_step(*batch)
            logs = {metric.name: float(metric.result()) for metric in metrics}
            callbacks.on_train_batch_end(i, logs)
        if not all(tf.math.is_finite(list(logs.values()))):
            raise FloatingPointError(
                f"The loss is not finite in epoch {epoch + 1}, steps "
                f"{steps.start}...{steps.stop - 1}: {logs}. The last good "
                f"checkpoint is {checkpoints.latest_checkpoint}. Lower "
                "learning_rate or clip_norm."
            )
        logs["val_accuracy"] = evaluate(average, held_out)["top1"]
        callbacks.on_epoch_end(epoch, logs)
        checkpoints.save()
    callbacks.on_train_end()
    finish(average, held_out, output)


def build(recipe, examples, activation=None):
    """The model of a recipe, with logits unless `activation` is given."""
    return keras_cait.CaiT(
        recipe.embed_dim,
        recipe.depth,
        recipe.num_heads,
        recipe.patch_size,
        drop_path_rate=recipe.drop_path_rate,
        input_shape=(recipe.image_size, recipe.image_size, 3),
        classes=len(examples.class_names),
        classifier_activation=activation,
        name="cait",
    )


def augment(recipe):
    """The augmentation of a recipe, a function of `(image, seed)`."""
    return lambda image, seed: random_affine(
        image, seed, recipe.max_rotation, recipe.max_zoom, recipe.max_shift
    )


def make_train_step(recipe, model, average, optimizer, step, metrics):
    """One optimizer step on a batch, as a compiled function of the batch."""
    classes = model.output_shape[-1]
    generators = [
        v
        for v in model.non_trainable_variables
        if v.path.endswith("seed_generator_state")
    ]

    @tf.function(reduce_retracing=True)
    def train_step(images, labels):
        # The dropped branches depend on seed, layer and step alone, so that a
        # run that was interrupted drops the same ones.
        for layer, generator in enumerate(generators):
            state = tf.stack([recipe.seed + layer, step])
            generator.assign(tf.cast(state, generator.dtype))
        with tf.GradientTape() as tape:
            logits = model(images, training=True)
            loss = tf.reduce_mean(
                keras.losses.categorical_crossentropy(
                    tf.one_hot(labels, classes),
                    logits,
                    from_logits=True,
                    label_smoothing=recipe.label_smoothing,
                )
            )
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)
        momentum = recipe.ema_momentum
        for ours, theirs in zip(
            average.trainable_variables, variables, strict=True
        ):
            ours.assign(momentum * ours + (1 - momentum) * theirs)
        step.assign_add(1)
        hits = tf.equal(tf.argmax(logits, axis=-1), labels)
        for metric, value in zip(metrics, (loss, hits), strict=True):
            metric.update_state(value)

    return train_step


def claim(output, recipe):
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
    record.write_text(json.dumps(ours, indent=2) + "\n")


def describe(recipe, examples, model, steps_per_epoch):
    """Prints the arithmetic of a run."""
    variables = model.trainable_variables
    decayed = sum(v.value.shape.num_elements() for v in variables if decays(v))
    print(
        f"{model.count_params():,} parameters, {decayed:,} of them decayed; "
        f"{examples.count:,} images, {steps_per_epoch} steps of "
        f"{recipe.global_batch_size} images an epoch, {recipe.epochs} epochs"
    )


def finish(model, held_out, output):
    """Writes the trained model, its labels and its accuracy; model last."""
    evaluation = evaluate(model, held_out)
    (output / "evaluation.json").write_text(json.dumps(evaluation) + "\n")
    names = "".join(f"{name}\n" for name in held_out.class_names)
    (output / "labels.txt").write_text(names)
    write_pictures(held_out, output / "held_out")
    config = {**model.get_config(), "classifier_activation": "softmax"}
    classifier = keras_cait.CaiT.from_config(config)
    classifier.set_weights(model.get_weights())
    unfinished = output / "unfinished.keras"
    classifier.save(unfinished)
    unfinished.rename(output / "model.keras")
    print(
        f"{evaluation['top1']:.1%} of {held_out.count:,} held-out images are "
        f"right. The model is {output / 'model.keras'}"
    )


def write_pictures(examples, folder):
    """Writes examples as PNG files, one folder for each class."""
    for name in examples.class_names:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for index in range(examples.count):
        image, label = examples.read(index)
        name = examples.class_names[int(label)]
        keras.utils.save_img(
            folder / name / f"{index:04}.png", image.numpy(), scale=False
        )


def commands():
    """The recipes as sub-commands of `python -m training.train`."""

    def command(default):
        def start(
            output: Path,
            recipe: tyro.conf.OmitArgPrefixes[type(default)] = default,
        ):
            train(recipe, output)

        return start

    return {name: command(recipe) for name, recipe in RECIPES.items()}


def main(argv=None):
    """Runs the command line: `argv`, or that of the process."""
    run(
        lambda: tyro.extras.subcommand_cli_from_dict(
            commands(),
            prog="python -m training.train",
            description=__doc__,
            args=argv,
        )
    )


if __name__ == "__main__":
    main()
