"""The training program on tiny models, as a process of its own.

    python -m tests.helpers.run_training '{"strategy": "mirrored", "devices": 2,
                                   "runs": [{"output": "DIR", "seed": 1}]}'

A process has one strategy, as two of a kind collide, and any number of runs: a
folder and the fields of `TINY` that differ. In a run with `trouble` `[step,
what, worker]`, something happens to a worker before a step: it gets a signal
(`"SIGKILL"`), or what a function of this file does.
"""

import dataclasses
import functools
import json
import os
import resource
import signal
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from cyclopts import App

import training.data.datasets as datasets
import training.data.pipeline as pipeline
import training.loop.model as models
import training.loop.strategies as strategies
import training.loop.tensorboard as tensorboard
import training.report as report
from keras_cait.command_line import run
from keras_cait.datasets import SPLITS
from tests.helpers.models import randomise
from tests.helpers.oracle_weights import make_input
from training.data.datasets import Examples
from training.recipes import QUICKSTART
from training.train import train

# 20 steps. Gammas and weights are of order 1, and clipping, warm-up, decay and
# EMA are at work, so that any of them done wrong is seen. XLA is off, as the
# runs with it are compared with those without.
TINY = dataclasses.replace(
    QUICKSTART,
    patch_size=7,
    embed_dim=8,
    depth=1,
    num_heads=2,
    class_attention_depth=1,
    epochs=5,
    warmup_epochs=1,
    global_batch_size=24,
    learning_rate=0.1,
    clip_norm=0.5,
    ema_momentum=0.9,
    xla=False,
)


def noise(name, split, data_dir=None, **part):
    """96 noisy images of 4 classes."""
    labels = np.arange(96) % 4
    images = 127 + 40 * make_input((96, 28, 28, 3), seed=SPLITS.index(split))
    images[..., 0] += 20 * labels[:, None, None]
    images = tf.constant(np.clip(images, 0, 255).astype("uint8"))
    labels = tf.constant(labels)
    return Examples(96, tuple("abcd"), lambda i: (images[i], labels[i]))


def build(*arguments, build=models.build):
    return randomise(build(*arguments))


def stuck(strategy, batch):
    time.sleep(3600)


def killed_while_saving(strategy, batch):
    """Ends the process when a file, the next checkpoint's, reaches 20 KB."""
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


def not_a_number(strategy, batch):
    """Spoils the last image of the global batch: that of the last replica."""
    images, targets = batch
    *others, last = strategy.experimental_local_results(images)
    values = [*others, tf.concat([last[:-1], last[-1:] * np.nan], 0)]
    if len(values) == 1:
        return values[0], targets
    images = strategy.experimental_distribute_values_from_function(
        lambda context: values[context.replica_id_in_sync_group]
    )
    return images, targets


def troubled(
    recipe,
    strategy,
    examples,
    start,
    output,
    *,
    trouble,
    batches=pipeline.training_data,
):
    at, what, *worker = trouble
    task = json.loads(os.environ.get("TF_CONFIG", '{"task": {"index": 0}}'))
    is_here = worker in ([], [task["task"]["index"]])
    for step, batch in enumerate(
        batches(recipe, strategy, examples, start, output), start
    ):
        if step == at and is_here:
            if what.startswith("SIG"):
                os.kill(os.getpid(), signal.Signals[what])
            else:
                batch = globals()[what](strategy, batch) or batch
        yield batch


def recorded(generator, draws, next=keras.random.SeedGenerator.next):
    """The next draw of a `SeedGenerator`, noted whenever the graph draws."""
    seed = next(generator)

    def note(seed):
        draws.append(seed.tolist())
        return seed

    return tf.ensure_shape(tf.numpy_function(note, [seed], seed.dtype), (2,))


def main(runs, strategy="one", devices=1, timeout=60):
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * devices,
    )
    datasets.load = noise
    models.build = build
    # Other tests see these; here, they would take most of the time.
    tensorboard.IMAGES = 1
    report.write_report = lambda folder: folder
    strategy = strategies.make_strategy(strategy, timeout)
    strategies.make_strategy = lambda name: strategy
    for fields in runs:
        output = Path(fields.pop("output"))
        trouble = fields.pop("trouble", [-1, ""])
        draws = []
        if fields.pop("record_draws", False):
            keras.random.SeedGenerator.next = functools.partialmethod(
                recorded, draws
            )
        pipeline.training_data = functools.partial(troubled, trouble=trouble)
        recipe = dataclasses.replace(TINY, **fields)
        train(recipe, output, checkpoint_steps=2)
        if draws:
            (output / "draws.json").write_text(json.dumps(draws))


app = App()


@app.default
def command(arguments: str):
    main(**json.loads(arguments))


if __name__ == "__main__":
    run(app)
