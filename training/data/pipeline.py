"""The input pipeline: batches as functions of a position in the run.

The example at any global position of a run is a pure function of (seed,
position): there is no iterator state to save, a run goes on at any step, and
the global batch is the same for any number of devices and workers.
"""

import dataclasses
import json
from functools import partial

import tensorflow as tf

from keras_cait.decoding import decode_image
from keras_cait.preprocessing import resize_and_crop_in_graph
from training.data.augmentation import (
    random_affine,
    random_erasing,
    random_flip,
    random_resized_crop,
)
from training.data.mixup import mixup_cutmix, smooth_one_hot
from training.data.randaugment import rand_augment
from training.loop.checkpoints import write_whole


def training_data(recipe, strategy, examples, step, output):
    """Batches from a step on, without the pictures that cannot be read.

    Those are named, and noted in the run's folder, so that the run that goes
    on leaves out the same ones.
    """
    record = output / "unreadable.json"
    found_at = json.loads(record.read_text()) if record.exists() else {}
    # Those of later steps are found again: a crop may miss the damaged part.
    unreadable = {int(index) for index, at in found_at.items() if at < step}
    augment = training_transform(recipe)
    mix = mixing(recipe, len(examples.class_names))
    while True:
        kept = examples.without(unreadable)
        batches = strategy.distribute_datasets_from_function(
            partial(training_batches, kept, augment, mix, recipe, step)
        )
        try:
            for batch in batches:
                yield batch
                step += 1
        except tf.errors.OpError:
            found = find_unreadable(kept, unreadable, augment, recipe, step)
            if not found:
                raise
            unreadable |= found
            for index in sorted(found):
                name = examples.name(index)
                print(f"Cannot be read, left out: {name}", flush=True)
            if len(unreadable) > recipe.max_unreadable:
                raise ValueError(
                    f"{len(unreadable)} pictures cannot be read, more than "
                    f"max_unreadable={recipe.max_unreadable}. Replace those "
                    "that are named, then start the same command again."
                ) from None
            found_at |= {str(index): step for index in found}
            write_whole(record, json.dumps(found_at) + "\n")


def find_unreadable(examples, known, augment, recipe, step):
    """The examples of a step whose pictures cannot be read, but for known."""
    found = set()
    first = step * recipe.global_batch_size
    for position in range(first, first + recipe.global_batch_size):
        position = tf.constant(position, tf.int64)
        index = int(index_at(position, examples, recipe))
        while index in known:  # as `Examples.without` goes on to the next
            index = (index + 1) % examples.count
        seed = tf.stack([tf.constant(recipe.seed, tf.int64), position])
        if not is_readable(
            examples, index, lambda x, seed=seed: augment(x, seed)
        ):
            found.add(index)
    return found


def unreadable_names(examples, transform):
    """Names of all examples whose pictures cannot be read."""
    return [
        examples.name(index)
        for index in range(examples.count)
        if not is_readable(examples, index, transform)
    ]


def is_readable(examples, index, transform):
    """Whether an example's picture can be read and transformed."""
    try:
        image, _ = examples.read(tf.constant(index, tf.int64))
        transform(image)
        return True
    except tf.errors.OpError:
        return False


def training_batches(examples, augment, mix, recipe, start=0, context=None):
    """Shuffled, augmented batches of this worker, from a step on, for ever.

    Args:
        examples: `Examples`.
        augment: function of `(image, seed)`, an int64 pair, to an image.
        mix: function of `(images, labels, seed)` to `(images, targets)`, of
            the `recipe.mixing_batch_size` examples that are mixed together.
        recipe: `Recipe`.
        start: int. First step.
        context: `tf.distribute.InputContext`; `None` for one process with one
            device.

    Returns:
        `tf.data.Dataset` of `(images, targets)`, one batch a replica.

    Example:
    >>> from training.data.datasets import load
    >>> from training.recipes import Recipe
    >>> digits, recipe = load("digits", "train"), Recipe(global_batch_size=8)
    >>> batches = training_batches(
    ...     digits, lambda x, _: x, lambda x, y, _: (x, y), recipe, start=5
    ... )
    >>> next(iter(batches))[0].shape.as_list()
    [8, 28, 28, 3]
    """
    context = context or tf.distribute.InputContext()
    global_batch = recipe.global_batch_size
    worker_batch = global_batch // context.num_input_pipelines
    group = min(recipe.mixing_batch_size, global_batch)
    if worker_batch % group:
        raise ValueError(
            f"The {worker_batch} images of a worker's step do not divide into "
            f"groups of mixing_batch_size={group}, which are mixed together. "
            "Choose a divisor, so that the same images are mixed on any "
            "number of workers."
        )
    seed = tf.constant(recipe.seed, tf.int64)

    def example(place):
        step, offset = place // worker_batch, place % worker_batch
        offset += context.input_pipeline_id * worker_batch
        position = step * global_batch + offset
        image, label = examples.read(index_at(position, examples, recipe))
        return augment(image, tf.stack([seed, position])), label, position

    def mixed(images, labels, positions):
        # Other draws than those of the first example of the group.
        return mix(images, labels, tf.stack([~seed, positions[0]]))

    return (
        tf.data.Dataset.range(start * worker_batch, 2**62)
        .map(example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .batch(group, drop_remainder=True)
        .map(mixed, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .rebatch(
            context.get_per_replica_batch_size(global_batch),
            drop_remainder=True,
        )
        .prefetch(tf.data.AUTOTUNE)
    )


def index_at(position, examples, recipe):
    """Number of the example at a global position of a run.

    Args:
        position: int64 scalar tensor.
        examples: `Examples`.
        recipe: `Recipe`.

    Reference: with `repeated_augmentation` 3, DeiT's RASampler.
    """
    epoch_size = steps_per_epoch(examples, recipe) * recipe.global_batch_size
    epoch, place = position // epoch_size, position % epoch_size
    # The public index_shuffle has 4 rounds, too few: its orders correlate.
    return tf.raw_ops.RandomIndexShuffle(
        index=place // recipe.repeated_augmentation,
        seed=tf.stack([tf.constant(recipe.seed, tf.int64), epoch, 0]),
        max_index=tf.constant(examples.count - 1, tf.int64),
        rounds=8,
    )


def steps_per_epoch(examples, recipe):
    """Optimizer steps of an epoch: whole global batches alone."""
    steps = examples.count // recipe.global_batch_size
    if steps == 0:
        raise ValueError(
            f"The data set holds {examples.count} images, fewer than "
            f"global_batch_size={recipe.global_batch_size}. Choose a smaller "
            "batch."
        )
    return steps


def evaluation_batches(examples, transform, batch_size, context=None, start=0):
    """All examples once, in order, padded to whole global batches.

    Args:
        examples: `Examples`.
        transform: function of what `examples.read` gives as the image to the
            image for the model.
        batch_size: int. Images of a global batch.
        context: `tf.distribute.InputContext`; `None` for one device.
        start: int. Number of the first example.

    Returns:
        `tf.data.Dataset` of `(images, labels, weights)`; the padding has
        weight 0.

    Example:
    >>> from training.data.datasets import load
    >>> digits = load("digits", "held_out")
    >>> batches = evaluation_batches(digits, tf.identity, 300)
    >>> [float(tf.reduce_sum(weights)) for _, _, weights in batches]
    [300.0, 300.0, 300.0, 100.0]
    """
    context = context or tf.distribute.InputContext()
    batches = -(-(examples.count - start) // batch_size)

    def example(index):
        image, label = examples.read(tf.minimum(index, examples.count - 1))
        weight = tf.cast(index < examples.count, tf.float32)
        return transform(image), label, weight

    return (
        tf.data.Dataset.range(start, start + batches * batch_size)
        .shard(context.num_input_pipelines, context.input_pipeline_id)
        .map(example, num_parallel_calls=tf.data.AUTOTUNE)
        .batch(
            context.get_per_replica_batch_size(batch_size), drop_remainder=True
        )
        .prefetch(2)
    )


def training_transform(recipe):
    """The augmentation of a recipe.

    Args:
        recipe: `Recipe`.

    Returns:
        A function of `(picture, seed)`, an encoded picture or RGB in 0...255
        and an int64 pair, to a float32 image of the recipe's size.
    """
    size = recipe.image_size
    if recipe.augmentation == "affine":
        return lambda picture, seed: random_affine(
            evaluation_transform(recipe)(picture),
            seed,
            recipe.max_rotation,
            recipe.max_zoom,
            recipe.max_shift,
        )

    def transform(picture, seed):
        crop_seed, flip_seed, change_seed, erase_seed = tf.unstack(
            tf.random.split(seed, 4)
        )
        image = random_resized_crop(picture, crop_seed, size)
        image = random_flip(image, flip_seed)
        image = rand_augment(image, change_seed)
        return random_erasing(image, erase_seed, recipe.random_erasing)

    return transform


def evaluation_transform(recipe):
    """`centre_crop` at the size of a recipe."""
    return centre_crop((recipe.image_size, recipe.image_size))


def centre_crop(size, crop_ratio=1.0):
    """Resize of the shorter side and centre crop, as Pillow does it.

    Args:
        size: pair of ints, height and width in pixels.
        crop_ratio: float in (0, 1]. Share of the shorter side that is kept.

    Returns:
        A function of an encoded picture or RGB in 0...255 to a float32 image
        of the size.
    """

    def transform(picture):
        if picture.dtype == tf.string:
            picture = decode_image(picture)
        if picture.shape == (*size, 3) and crop_ratio == 1.0:
            return tf.cast(picture, tf.float32)
        return resize_and_crop_in_graph(picture, size, crop_ratio)

    return transform


def mixing(recipe, classes):
    """Mixup, CutMix and label smoothing of a recipe.

    Args:
        recipe: `Recipe`.
        classes: int.

    Returns:
        A function of `(images, labels, seed)` to `(images, targets)`.
    """
    if recipe.mixing_batch_size == 1:
        return lambda images, labels, seed: (
            images,
            smooth_one_hot(labels, classes, recipe.label_smoothing),
        )
    return lambda images, labels, seed: mixup_cutmix(
        images,
        labels,
        classes,
        seed,
        recipe.mixup_alpha,
        recipe.cutmix_alpha,
        label_smoothing=recipe.label_smoothing,
    )


def prepared(examples, recipe):
    """The same examples, as images for the model."""
    transform = evaluation_transform(recipe)

    def read(index):
        picture, label = examples.read(index)
        return transform(picture), label

    return dataclasses.replace(examples, read=read)
