"""Training steps of CaiT, ours beside timm's model in PyTorch.

    python -m benchmarks.training --variant XXS24 --output training.json

A step is forward and backward pass with stochastic depth, cross entropy with
soft targets, AdamW and averaged weights, on one fixed batch of 224 x 224
pixels. The contestants that are installed take turns (`benchmarks/turns.py`),
and the fastest round counts.
"""

import argparse
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.record import show, write
from benchmarks.turns import take_turns

CLASSES = 1000


def keras_cait_contestant(variant, batch_size, in_loop=False, **changes):
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import keras
    import tensorflow as tf

    from training.data.datasets import Examples
    from training.data.mixup import smooth_one_hot
    from training.loop.callbacks import Meter
    from training.loop.optimizers import make_optimizer
    from training.loop.strategies import make_strategy
    from training.loop.trainer import Trainer
    from training.recipes import RECIPES
    from training.train import build, make_loss

    recipe = replace(
        RECIPES[f"{variant.lower()}-224"],
        global_batch_size=batch_size,
        precision="float32",
        **changes,
    )
    keras.config.set_dtype_policy(recipe.precision)
    examples = Examples(1000, tuple(map(str, range(CLASSES))), None)
    trainer = Trainer(
        recipe,
        make_strategy("one"),
        lambda: build(recipe, examples),
        lambda model: make_optimizer(recipe, model, 1000),
        lambda: make_loss(recipe, CLASSES),
    )
    size = recipe.image_size
    images = tf.random.uniform((batch_size, size, size, 3), maxval=255.0)
    labels = tf.range(batch_size, dtype=tf.int64)
    targets = smooth_one_hot(labels, CLASSES, 0.1)
    if not in_loop:

        def run():
            trainer.train_step(images, targets)
            return trainer.step  # waits for the device

        return run

    trainer.model.compile(trainer.optimizer)
    callbacks = keras.callbacks.CallbackList(
        add_progbar=True, model=trainer.model, epochs=1, steps=1000, verbose=2
    )
    callbacks.on_train_begin()
    callbacks.on_epoch_begin(0)
    meter = Meter(recipe, trainer, 1000)

    def run():
        callbacks.on_train_batch_begin(0)
        with meter.waiting():
            pass
        trainer.train_step(images, targets)
        callbacks.on_train_batch_end(0, meter.logs(trainer.step))

    return run


def timm_contestant(variant, batch_size, compiled):
    import timm
    import torch
    from timm.loss import SoftTargetCrossEntropy
    from timm.utils import ModelEmaV3

    from keras_cait.models import VARIANTS

    model = timm.create_model(
        f"cait_{variant.lower()}_224",
        drop_path_rate=VARIANTS[variant].drop_path_rate,
    ).train()
    average = ModelEmaV3(model, decay=0.99996)
    optimizer = torch.optim.AdamW(model.parameters(), 5e-4, weight_decay=0.05)
    loss_of = SoftTargetCrossEntropy()
    forward = torch.compile(model) if compiled else model
    images = torch.randn(batch_size, 3, 224, 224)
    targets = torch.full((batch_size, CLASSES), 1e-4)
    targets[range(batch_size), range(batch_size)] += 0.9

    def run():
        optimizer.zero_grad()
        loss_of(forward(images), targets).backward()
        optimizer.step()
        average.update(model)

    return run


CONTESTANTS = {
    # name: (what must be installed, how to make a function of one step)
    "ours": ("tensorflow", keras_cait_contestant),
    "ours, in the loop": (
        "tensorflow",
        partial(keras_cait_contestant, in_loop=True),
    ),
    "ours, rematerialized": (
        "tensorflow",
        partial(keras_cait_contestant, rematerialize=True),
    ),
    "ours, without XLA": (
        "tensorflow",
        partial(keras_cait_contestant, xla=False),
    ),
    "timm eager": ("timm", partial(timm_contestant, compiled=False)),
    "timm compiled": ("timm", partial(timm_contestant, compiled=True)),
}


def rows(batch_size, results):
    timm = [
        results[name].get("seconds") for name in ("timm eager", "timm compiled")
    ]
    found = {}
    for name, result in results.items():
        if "error" in result:
            found[name] = {"images/s": result["error"]}
        else:
            eager, compiled = (x and x / result["seconds"] for x in timm)
            found[name] = {
                "images/s": batch_size / result["seconds"],
                "timm eager = 1": eager,
                "timm compiled = 1": compiled,
                "peak MB": result["peak_bytes"] / 1e6,
            }
    return found


def parser():
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    arguments.add_argument("--variant", default="XXS24")
    arguments.add_argument("--batch-size", type=int, default=8)
    arguments.add_argument("--rounds", type=int, default=7)
    arguments.add_argument("--output", type=Path, help="JSON file to write")
    return arguments


def main():
    arguments = parser().parse_args()
    variant, batch_size = arguments.variant, arguments.batch_size
    results = take_turns(CONTESTANTS, (variant, batch_size), arguments.rounds)
    title = f"A step of CaiT-{variant} at 224, batch {batch_size}, float32"
    tables = {title: rows(batch_size, results)}
    show(title, tables[title])
    write(tables, arguments.output)


if __name__ == "__main__":
    main()
