"""Trains a CaiT: `python -m training.train quickstart --output runs/digits`.

The same command goes on where an interrupted run stopped, to the same weights,
bit for bit. A finished run is never overwritten.
"""

import os
import signal
from pathlib import Path
from typing import Literal

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import tensorflow as tf
import tyro

import keras_cait
from keras_cait.models import VARIANTS
from keras_cait.weights import load_published, nearest_checkpoint
from training.command import run
from training.data.datasets import load
from training.data.pipeline import (
    evaluation_batches,
    evaluation_transform,
    prepared,
    steps_per_epoch,
    training_data,
    unreadable_names,
)
from training.loop.callbacks import Meter, Pictures, callback_list
from training.loop.checkpoints import Checkpoints
from training.loop.distillation import make_loss
from training.loop.memory import estimated_memory
from training.loop.optimizers import decays, freeze, make_optimizer
from training.loop.rematerialization import rematerialize
from training.loop.run_folder import claim, finish, forget_history
from training.loop.strategies import (
    is_chief,
    lost_workers,
    make_strategy,
    sum_of_workers,
    worker_count,
)
from training.loop.trainer import Trainer
from training.recipes import RECIPES

# Steps after which many workers agree on whether one of them was asked to stop.
AGREEMENT_STEPS = 10


@lost_workers()
def train(
    recipe, output, data_dir=None, strategy="auto", checkpoint_steps=1000
):
    """Trains a recipe to its end and leaves the run in a folder.

    Args:
        recipe: `Recipe`.
        output: path of the run's folder; it is made, or an interrupted run of
            the same recipe in it goes on, also on another number of devices.
            It ends up with `model.keras` (the averaged weights, with softmax),
            `labels.txt`, `history.csv`, `summary.json`, `recipe.json`,
            `checkpoints/` (the last three and the best) and `tensorboard/`.
        data_dir: path, where TensorFlow Datasets keeps its files.
        strategy: str, as for `make_strategy`.
        checkpoint_steps: int. Steps between checkpoints; there is also one at
            the end of every epoch, and one when the run is asked to stop by
            SIGTERM or Ctrl-C.

    Raises:
        ValueError: the folder holds a finished run, or one of another recipe.
        OSError: the folder cannot be written.
        FloatingPointError: a loss or gradient is not finite.
        ConnectionError: another worker died or hangs.
    """
    strategy = make_strategy(strategy)
    chief = is_chief(strategy)
    claim(output, recipe, chief)
    keras.utils.set_random_seed(recipe.seed)
    keras.config.set_dtype_policy(recipe.precision)
    examples = load(recipe.data, "train", data_dir)
    held_out = load(recipe.data, "held_out", data_dir)
    steps = steps_per_epoch(examples, recipe)

    trainer = Trainer(
        recipe,
        strategy,
        lambda: build(recipe, examples),
        lambda model: make_optimizer(recipe, model, steps),
        lambda: make_loss(recipe, len(examples.class_names)),
    )
    checkpoints = Checkpoints(trainer.state, output / "checkpoints", chief)
    restored = checkpoints.restore()
    start = trainer.step
    if chief:
        describe(recipe, examples, trainer, steps)
        if restored:
            print(f"Going on at step {start}, from {restored}")
        forget_history(output / "history.csv", start // steps)

    stop = StopSignal()
    batches = training_data(recipe, strategy, examples, start, output)
    validation = strategy.distribute_datasets_from_function(
        lambda context: evaluation_batches(
            held_out,
            evaluation_transform(recipe),
            recipe.global_batch_size,
            context,
        )
    )

    def validate():
        try:
            return trainer.evaluate(validation)
        except (tf.errors.InvalidArgumentError, tf.errors.NotFoundError):
            names = unreadable_names(held_out, evaluation_transform(recipe))
            if not names:
                raise
            raise ValueError(
                "Held-out pictures cannot be read; replace or remove them: "
                f"{', '.join(names)}"
            ) from None

    pictures = Pictures(trainer.average, prepared(held_out, recipe), output)
    callbacks = callback_list(recipe, trainer, output, chief, steps, pictures)
    callbacks.on_train_begin()
    for epoch in range(start // steps, recipe.epochs):
        callbacks.on_epoch_begin(epoch)
        meter = Meter(recipe, trainer, steps)
        for i in range(trainer.step % steps, steps):
            callbacks.on_train_batch_begin(i)
            with meter.waiting():
                images, targets = next(batches)
            trainer.train_step(images, targets)
            done = epoch * steps + i + 1
            callbacks.on_train_batch_end(i, meter.logs(done))
            is_best = False
            if i + 1 == steps:  # the last step is done when its epoch is
                logs = meter.logs(done, now=True)
                if is_evaluated(recipe, epoch):
                    logs |= validate()
                    is_best = trainer.note_accuracy(logs["val_accuracy"])
                pictures.seen = strategy.experimental_local_results(images)[0]
                callbacks.on_epoch_end(epoch, logs)
                trainer.reset_means()
            asked = stop.agreed(strategy, done)
            if asked or done % checkpoint_steps == 0 or i + 1 == steps:
                check_finite(trainer, steps, checkpoints)
                checkpoints.save(done, is_best)
            if asked:
                raise KeyboardInterrupt(
                    f"Stopped at step {done}, which is saved. The same command "
                    "goes on from there."
                )
    callbacks.on_train_end()
    if chief:
        finish(trainer, prepared(held_out, recipe), output)


def is_evaluated(recipe, epoch):
    """Whether an epoch ends with an evaluation."""
    done = epoch + 1
    return done == recipe.epochs or done % recipe.evaluation_epochs == 0


def build(recipe, examples):
    """The model of a recipe, which gives logits."""
    model = keras_cait.CaiT(
        recipe.embed_dim,
        recipe.depth,
        recipe.num_heads,
        recipe.patch_size,
        class_attention_depth=recipe.class_attention_depth,
        init_values=recipe.init_values,
        drop_path_rate=recipe.drop_path_rate,
        input_shape=(recipe.image_size, recipe.image_size, 3),
        classes=len(examples.class_names),
        classifier_activation=None,
        name="cait",
    )
    if recipe.weights:
        start_from(model, recipe.weights)
    freeze(model, recipe.trainable)
    if recipe.rematerialize:
        rematerialize(model)
    return model


def start_from(model, weights):
    """Loads a file, or the published weights of a variant such as "S24".

    With another number of classes, the head stays as it is.
    """
    if weights in VARIANTS:
        checkpoint = nearest_checkpoint(weights, model.image_shape[:2])
        load_published(model, checkpoint)
        return
    try:
        keras_cait.load_checkpoint(model, weights)
    except ValueError:
        body = keras_cait.CaiT.from_config(
            {**model.get_config(), "include_top": False}
        )
        keras_cait.load_checkpoint(body, weights)
        for layer in body.layers:
            model.get_layer(layer.name).set_weights(layer.get_weights())
        print(f"All weights but those of the head are loaded from {weights}")


class StopSignal:
    """Whether the run was asked to stop, by SIGTERM or Ctrl-C.

    The step under way is finished first. A second Ctrl-C stops at once.
    """

    def __init__(self):
        self.asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, number, frame):
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def agreed(self, strategy, step):
        """Whether any worker was asked to; all answer alike at a step."""
        if worker_count(strategy) == 1:
            return self.asked
        if step % AGREEMENT_STEPS:
            return False
        return float(sum_of_workers(strategy, float(self.asked))) > 0


def check_finite(trainer, steps, checkpoints):
    """Stops a run whose loss was not finite, before it is saved."""
    step = trainer.nonfinite
    if step >= 0 and trainer.recipe.on_nonfinite == "stop":
        raise FloatingPointError(
            f"Loss or gradient is not finite at step {step}, in epoch "
            f"{step // steps + 1}. The last good checkpoint is "
            f"{checkpoints.newest}. Lower learning_rate or clip_norm, or "
            "choose on_nonfinite=skip."
        )


def describe(recipe, examples, trainer, steps):
    """Prints the arithmetic of a run."""
    sizes = [(v, v.value.shape.num_elements()) for v in trainer.variables]
    learned = sum(size for _, size in sizes)
    decayed = sum(size for v, size in sizes if decays(v))
    replicas = trainer.strategy.num_replicas_in_sync
    memory = estimated_memory(recipe, trainer.model.count_params(), replicas)
    print(
        f"{trainer.model.count_params():,} parameters, {learned:,} of them "
        f"learn, {decayed:,} decay\n"
        f"{examples.count:,} images, {steps} steps of "
        f"{recipe.global_batch_size} an epoch, {recipe.epochs} epochs\n"
        f"{replicas} devices with {recipe.accumulation_steps} micro-batches of "
        f"{recipe.global_batch_size // replicas // recipe.accumulation_steps}\n"
        f"About {memory / 1e9:.1f} GB of memory on each device"
    )


def commands():
    """The recipes as sub-commands of `python -m training.train`."""

    def command(default):
        def start(
            output: Path,
            recipe: tyro.conf.OmitArgPrefixes[type(default)] = default,
            data_dir: Path | None = None,
            strategy: Literal[
                "auto", "one", "mirrored", "workers", "tpu"
            ] = "auto",
            checkpoint_steps: int = 1000,
        ):
            """Trains, or goes on with a run that was interrupted.

            Args:
                output: Folder of the run.
                recipe: What decides what is computed.
                data_dir: Where TensorFlow Datasets keeps its files.
                strategy: Devices: one, all GPUs of this machine (mirrored),
                    the processes of TF_CONFIG (workers), a TPU, or whichever
                    the environment asks for (auto).
                checkpoint_steps: Steps between checkpoints.
            """
            train(recipe, output, data_dir, strategy, checkpoint_steps)

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
