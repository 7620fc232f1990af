"""Images a second of the input pipeline, ours beside timm's loader.

    python -m benchmarks.pipeline --output pipeline.json

Both run DeiT's recipe on the same JPEG files of 500 x 375: random-resized crop
to 224, flip, RandAugment `rand-m9-mstd0.5-inc1`, normalisation, random erasing,
Mixup or CutMix, to float32 batches. Each runs in a process of its own with all
cores, timm's with as many workers; they take turns for a few rounds. A batch's
processor time, of all processes and threads together, does not depend on what
else the machine does, and so is what images a second and core come from.
"""

import argparse
import importlib.util
import multiprocessing
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.record import show, write

SIZE = 224
CLASSES = 1000


def keras_cait_contestant(folder, batch_size):
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import tensorflow as tf

    from keras_cait.preprocessing import IMAGENET_MEAN, IMAGENET_STD
    from training.data.datasets import Examples
    from training.data.pipeline import (
        mixing,
        training_batches,
        training_transform,
    )
    from training.recipes import RECIPES

    recipe = replace(
        RECIPES["s24-224"],
        global_batch_size=batch_size,
        mixing_batch_size=batch_size,
        repeated_augmentation=1,
    )
    paths = tf.constant(sorted(map(str, folder.glob("*/*.jpg"))))
    examples = Examples(
        len(paths),
        tuple(map(str, range(CLASSES))),
        lambda index: (tf.io.read_file(paths[index]), index % CLASSES),
    )
    augment = training_transform(recipe)
    # By rows: broadcasting three channels takes several times as long.
    mean, std = (
        255.0 * tf.tile(tf.constant(values), [SIZE])
        for values in (IMAGENET_MEAN, IMAGENET_STD)
    )

    def normalized(encoded, seed):  # in training, the model does that
        rows = tf.reshape(augment(encoded, seed), (SIZE, -1))
        return tf.reshape((rows - mean) / std, (SIZE, SIZE, 3))

    mix = mixing(recipe, CLASSES)
    return iter(training_batches(examples, normalized, mix, recipe))


def timm_contestant(folder, batch_size):
    import torch
    from timm.data import ImageDataset, Mixup, auto_augment, create_loader

    # Workers as on Linux by default, although this process was spawned.
    multiprocessing.set_start_method("fork", force=True)
    # Once in some 650 pictures timm asks for 0 bits, which Pillow 13 refuses.
    posterize = auto_augment.NAME_TO_OP["PosterizeIncreasing"]
    auto_augment.NAME_TO_OP["PosterizeIncreasing"] = (
        lambda image, bits, **kwargs: posterize(image, max(bits, 1), **kwargs)
    )
    loader = create_loader(
        ImageDataset(str(folder)),
        (3, SIZE, SIZE),
        batch_size,
        is_training=True,
        use_prefetcher=False,
        re_prob=0.25,
        re_mode="pixel",
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic",
        num_workers=os.cpu_count(),
        device=torch.device("cpu"),
    )
    mixup = Mixup(0.8, 1.0, label_smoothing=0.1, num_classes=CLASSES)

    def batches():
        while True:
            for images, labels in loader:
                yield mixup(images, labels)

    return batches()


CONTESTANTS = {
    # name: (what must be installed, how to make an iterator of batches)
    "ours": ("tensorflow", keras_cait_contestant),
    "timm": ("timm", timm_contestant),
}


def write_pictures(folder, count):
    """JPEG files with the detail of photos: smooth shapes and some noise."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    for i in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), "uint8"))
        smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC))
        noise = random.normal(0, 12, smooth.shape)
        pixels = np.clip(smooth + noise, 0, 255).astype("uint8")
        path = folder / str(i % 10) / f"{i}.jpg"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels).save(path, quality=90)


def processor_seconds(group):
    """User and system time of all processes of a group so far."""
    total = 0
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group:
            total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def serve(connection, make, folder, batch_size):
    """The process of a contestant: runs some batches for each message."""
    os.setpgrp()
    batches = make(folder, batch_size)
    for _ in range(3):
        next(batches)
    connection.send(None)
    while count := connection.recv():
        start = time.perf_counter()
        cpu = processor_seconds(os.getpgrp())
        for _ in range(count):
            next(batches)
        seconds = time.perf_counter() - start
        connection.send((seconds, processor_seconds(os.getpgrp()) - cpu))


def measure(folder, batch_size, batches, rounds):
    """Images a second and processor seconds an image, taking turns."""
    spawn = multiprocessing.get_context("spawn")
    results = {name: [] for name in CONTESTANTS}
    for _ in range(rounds):
        for name, (package, make) in CONTESTANTS.items():
            if importlib.util.find_spec(package) is None:
                continue
            # A pipeline works ahead, so that only one may be there at a time.
            connection, theirs = spawn.Pipe()
            process = spawn.Process(
                target=serve, args=(theirs, make, folder, batch_size)
            )
            process.start()
            theirs.close()
            connection.recv()
            connection.send(batches)
            seconds, cpu = connection.recv()
            connection.send(0)
            process.join()
            images = batches * batch_size
            results[name].append(
                {
                    "images_per_second": images / seconds,
                    "images_per_core_second": images / cpu,
                }
            )
    return results


def rows(results):
    best = {
        name: {key: max(run[key] for run in runs) for key in runs[0]}
        for name, runs in results.items()
        if runs
    }
    timm = best.get("timm", {}).get("images_per_core_second")
    return {
        name: {
            "images/s": rates["images_per_second"],
            "images/s and core": rates["images_per_core_second"],
            "timm = 1": timm and rates["images_per_core_second"] / timm,
        }
        for name, rates in best.items()
    }


def parser():
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    arguments.add_argument("--batch-size", type=int, default=64)
    arguments.add_argument("--batches", type=int, default=12)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--output", help="JSON file to write")
    return arguments


def main():
    arguments = parser().parse_args()
    with tempfile.TemporaryDirectory() as folder:
        # Enough for an epoch of timm's to cover a round.
        count = arguments.batch_size * (arguments.batches + 8)
        write_pictures(Path(folder), count)
        results = measure(
            Path(folder),
            arguments.batch_size,
            arguments.batches,
            arguments.rounds,
        )
    title = f"Pictures for training, batch {arguments.batch_size}"
    tables = {title: rows(results)}
    show(title, tables[title])
    write(tables, arguments.output)


if __name__ == "__main__":
    main()
