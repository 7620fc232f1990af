"""Pictures that cannot be read: named, counted, left out up to a limit."""

import json
from functools import partial

import tensorflow as tf

from training.data import index_at, training_batches
from training.run_folder import write_whole
from training.transforms import mixing, training_transform


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
