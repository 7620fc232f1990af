"""Training: steps of keras-cait and of timm's model in PyTorch.

A step is forward and backward pass with stochastic depth, cross entropy with
soft targets, AdamW and EMA weights, on one fixed batch of 224 x 224 pixels.
"""

import atexit
import shutil
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.command import Count, Output, Rounds, benchmark_app, run
from benchmarks.inference import Run
from benchmarks.interleave import Runner, Timing, compared, interleave
from benchmarks.results import Rows, show, write
from training.recipe import Recipe, Variant

CLASSES = 1000


def make_trainer(recipe: Recipe) -> Any:
    """The `Trainer` of a resolved recipe on one device, with random weights."""
    from training.loop.distillation import make_loss
    from training.loop.model import build
    from training.loop.optimizers import make_optimizer
    from training.loop.strategies import make_strategy
    from training.loop.trainer import Trainer

    model, ema_model = build(recipe, CLASSES), build(recipe, CLASSES)
    return Trainer(
        recipe,
        make_strategy("one"),
        model,
        ema_model,
        make_optimizer(recipe, model, 1000),
        make_loss(recipe, CLASSES),
    )


def keras_cait_runner(
    variant: str, batch_size: int, in_loop: bool = False, **changes: Any
) -> Run:
    import keras
    import tensorflow as tf

    from training.data.datasets import Examples
    from training.data.mixup import smooth_one_hot
    from training.loop.monitor import Monitor
    from training.loop.progress import ProgressLine
    from training.recipes import RECIPES

    recipe = replace(
        RECIPES[f"{variant.lower()}-224"],
        global_batch_size=batch_size,
        precision="float32",
        **changes,
    ).resolved()
    keras.config.set_dtype_policy(recipe.precision)
    trainer = make_trainer(recipe)
    size = recipe.image_size
    images = tf.random.uniform((batch_size, size, size, 3), maxval=255.0)
    labels = tf.range(batch_size, dtype=tf.int64)
    targets = smooth_one_hot(labels, CLASSES, 0.1)
    if not in_loop:

        def step() -> int:
            trainer.train_step(images, targets)
            return trainer.step  # waits for the device

        return step

    steps_per_epoch = 1_281_167 // batch_size
    validation = Examples(
        50_000, ("",) * CLASSES, lambda index: (images, index)
    )
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    monitor = Monitor(
        recipe, trainer, validation, folder, steps_per_epoch, ProgressLine()
    )

    def step_in_loop() -> None:
        with monitor.waiting():
            pass
        trainer.train_step(images, targets)
        monitor.after_step(trainer.step)

    return step_in_loop


def timm_runner(variant: str, batch_size: int, compiled: bool) -> Run:
    import timm
    import torch
    from timm.loss import SoftTargetCrossEntropy
    from timm.utils import ModelEmaV3

    from keras_cait.models import VARIANTS

    model = timm.create_model(
        f"cait_{variant.lower()}_224",
        drop_path_rate=VARIANTS[variant].drop_path_rate,
    ).train()
    ema = ModelEmaV3(model, decay=0.99996)
    optimizer = torch.optim.AdamW(model.parameters(), 5e-4, weight_decay=0.05)
    loss_function = SoftTargetCrossEntropy()
    forward = torch.compile(model) if compiled else model
    images = torch.randn(batch_size, 3, 224, 224)
    targets = torch.full((batch_size, CLASSES), 1e-4)
    targets[range(batch_size), range(batch_size)] += 0.9

    def step() -> None:
        optimizer.zero_grad()
        loss_function(forward(images), targets).backward()
        optimizer.step()
        ema.update(model)

    return step


RUNNERS: dict[str, Runner] = {
    "keras-cait": ("tensorflow", keras_cait_runner),
    "keras-cait, in the loop": (
        "tensorflow",
        partial(keras_cait_runner, in_loop=True),
    ),
    "keras-cait, rematerialized": (
        "tensorflow",
        partial(keras_cait_runner, rematerialize=True),
    ),
    "keras-cait, without XLA": (
        "tensorflow",
        partial(keras_cait_runner, xla=False),
    ),
    "keras-cait, rematerialized, without XLA": (
        "tensorflow",
        partial(keras_cait_runner, rematerialize=True, xla=False),
    ),
    "timm eager": ("timm", partial(timm_runner, compiled=False)),
    "timm compiled": ("timm", partial(timm_runner, compiled=True)),
}


def rows(batch_size: int, timings: dict[str, Timing | str]) -> Rows:
    """Images per second, relative to timm, and peak memory."""
    found = compared(timings, batch_size, "timm eager", "timm compiled")
    for name, timing in timings.items():
        if isinstance(timing, Timing):
            found[name]["peak MB"] = timing.peak_bytes / 1e6
    return found


app = benchmark_app("training", __doc__)


@app.default
def main(
    *,
    variant: Variant = "XXS24",
    batch_size: Count = 8,
    rounds: Rounds = 7,
    output: Output = None,
) -> None:
    """Times training steps at 224 pixels in float32.

    Args:
        variant: Model to train, such as XXS24 or S24.
        batch_size: Images per step.
    """
    timings = interleave(RUNNERS, (variant, batch_size), rounds)
    title = f"A step of CaiT-{variant} at 224, batch {batch_size}, float32"
    tables = {title: rows(batch_size, timings)}
    show(title, tables[title])
    write(tables, output, rounds)


if __name__ == "__main__":
    run(app)
