"""The input pipeline: every batch is a function of its position in the run.

The example at a global position depends only on the seed and the position.
There is no iterator state to save, a run resumes at any step, and the global
batch is the same on any number of devices and workers.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import tensorflow as tf

from keras_cait.decoding import decode_image, resize_and_crop_in_graph
from keras_cait.files import read_json, write_text
from training.data.augmentation import (
    random_affine,
    random_erasing,
    random_flip,
    random_resized_crop,
)
from training.data.datasets import Examples
from training.data.mixup import mixup_cutmix, smooth_one_hot
from training.data.randaugment import rand_augment
from training.recipe import Recipe

UNREADABLE = "unreadable.json"  # in the run's folder

Transform = Callable[[tf.Tensor], tf.Tensor]
Augment = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
Mix = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


def training_data(
    recipe: Recipe,
    strategy: tf.distribute.Strategy,
    examples: Examples,
    step: int,
    output: Path,
) -> Iterator[tuple[tf.Tensor, tf.Tensor]]:
    """The run's batches from a step on, without images that cannot be read.

    Unreadable images are printed and recorded in `unreadable.json`, so that a
    resumed run leaves out the same ones.

    Args:
        recipe: the resolved recipe.
        strategy: distributes the batches.
        examples: training examples.
        step: first step.
        output: the run's folder.

    Yields:
        Distributed `(images, targets)` of one step: float32 `(batch, height,
        width, 3)`, RGB in 0...255, and `(batch, classes)` whose rows sum to 1.

    Raises:
        ValueError: more than `recipe.max_unreadable` images cannot be read.
    """
    found_at = unreadable_images(output)
    # Those of later steps are found again: a crop may miss the damaged part.
    unreadable = {int(number) for number, at in found_at.items() if at < step}
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
            for number in sorted(found):
                name = examples.name(number)
                print(f"Skipping an unreadable image: {name}", flush=True)
            # Read again, as other workers add theirs, which count as well.
            noted = unreadable_images(output)
            found_at = dict.fromkeys(map(str, found), step) | found_at | noted
            if len(found_at) > recipe.max_unreadable:
                raise ValueError(
                    f"{len(found_at)} images cannot be read, more than "
                    f"max_unreadable={recipe.max_unreadable}. Replace those "
                    "listed above, then run the same command again."
                ) from None
            write_text(output / UNREADABLE, json.dumps(found_at) + "\n")


def unreadable_images(output: Path) -> dict[str, int]:
    """The step at which a run found each unreadable image, by its number."""
    record = output / UNREADABLE
    return read_json(record) if record.exists() else {}


def training_batches(
    examples: Examples,
    augment: Augment,
    mix: Mix,
    recipe: Recipe,
    start: int = 0,
    context: tf.distribute.InputContext | None = None,
) -> tf.data.Dataset:
    """Infinite shuffled, augmented batches for this worker.

    Args:
        examples: training examples.
        augment: function of `(image, seed)`, an int64 pair, to an image.
        mix: function of `(images, labels, seed)` to `(images, targets)`, for
            the `recipe.mixing_batch_size` examples that are mixed together.
        recipe: the resolved recipe, whose groups divide the worker's images.
        start: first step.
        context: this worker's share; `None` for one process with one device.

    Returns:
        Dataset of `(images, targets)`, one batch per replica.

    Example:
    >>> from training.data.datasets import load
    >>> from training.recipe import override
    >>> from training.recipes import RECIPES
    >>> recipe = override(RECIPES["quickstart"], global_batch_size=8)
    >>> digits = load("digits", "train")
    >>> batches = training_batches(
    ...     digits, lambda x, _: x, lambda x, y, _: (x, y), recipe, start=5
    ... )
    >>> next(iter(batches))[0].shape.as_list()
    [8, 28, 28, 3]
    """
    share = context or tf.distribute.InputContext()
    global_batch = recipe.global_batch_size
    worker_batch = global_batch // share.num_input_pipelines
    group = min(recipe.mixing_batch_size, global_batch)
    seed = tf.constant(recipe.seed, tf.int64)

    def example(place: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        step, offset = place // worker_batch, place % worker_batch
        offset += share.input_pipeline_id * worker_batch
        position = step * global_batch + offset
        image, label = examples.read(index_at(position, examples, recipe))
        return augment(image, tf.stack([seed, position])), label, position

    def mixed(
        images: tf.Tensor, labels: tf.Tensor, positions: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        # ~seed: other draws than those of the group's first example.
        return mix(images, labels, tf.stack([~seed, positions[0]]))

    return (
        tf.data.Dataset.range(start * worker_batch, 2**62)
        .map(example, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .batch(group, drop_remainder=True)
        .map(mixed, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .rebatch(
            share.get_per_replica_batch_size(global_batch),
            drop_remainder=True,
        )
        .prefetch(tf.data.AUTOTUNE)
    )


def index_at(
    position: tf.Tensor, examples: Examples, recipe: Recipe
) -> tf.Tensor:
    """The number of the example at a global position of the run.

    Every epoch has its own order. With `repeated_augmentation` 3, neighboring
    positions share an example, as in DeiT's RASampler.

    Args:
        position: int64 scalar tensor.
        examples: training examples.
        recipe: the resolved recipe.
    """
    epoch_size = steps_per_epoch(examples, recipe) * recipe.global_batch_size
    epoch, place = position // epoch_size, position % epoch_size
    # Of up to 65,536 images, only 8 bits of each number of the seed count.
    run = tf.constant(recipe.seed, tf.int64)
    seed = tf.stack([run, epoch, run // 256 + epoch // 256])
    # The public index_shuffle has 4 rounds, too few: its orders correlate.
    return tf.raw_ops.RandomIndexShuffle(
        index=place // recipe.repeated_augmentation,
        seed=seed,
        max_index=tf.constant(examples.count - 1, tf.int64),
        rounds=8,
    )


def steps_per_epoch(examples: Examples, recipe: Recipe) -> int:
    """Optimizer steps per epoch; a last, smaller batch is left out.

    Raises:
        ValueError: the dataset is smaller than a batch.
    """
    steps = examples.count // recipe.global_batch_size
    if steps == 0:
        raise ValueError(
            f"The dataset has {examples.count} images, fewer than "
            f"global_batch_size={recipe.global_batch_size}. Choose a smaller "
            f"batch: --global-batch-size {1 << examples.count.bit_length() - 1}"
        )
    return steps


def validation_data(
    recipe: Recipe, strategy: tf.distribute.Strategy, examples: Examples
) -> tf.distribute.DistributedDataset:
    """The distributed `evaluation_batches` of a run."""
    transform = evaluation_transform(recipe)
    return strategy.distribute_datasets_from_function(
        lambda context: evaluation_batches(
            examples, transform, recipe.global_batch_size, context
        )
    )


def evaluation_batches(
    examples: Examples,
    transform: Transform,
    batch_size: int,
    context: tf.distribute.InputContext | None = None,
    start: int = 0,
) -> tf.data.Dataset:
    """All examples once, in order, padded to whole global batches.

    Args:
        examples: examples to evaluate.
        transform: function of an image, as in `examples.read`, to the model's
            input.
        batch_size: images per global batch.
        context: this worker's share; `None` for one process with one device.
        start: number of the first example.

    Returns:
        Dataset of `(images, labels, weights)`; padding has weight 0.

    Example:
    >>> from training.data.datasets import load
    >>> digits = load("digits", "validation")
    >>> batches = evaluation_batches(digits, tf.identity, 300)
    >>> [float(tf.reduce_sum(weights)) for _, _, weights in batches]
    [300.0, 300.0, 300.0, 100.0]
    """
    share = context or tf.distribute.InputContext()
    batches = -(-(examples.count - start) // batch_size)

    def example(index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        image, label = examples.read(tf.minimum(index, examples.count - 1))
        weight = tf.cast(index < examples.count, tf.float32)
        return transform(image), label, weight

    return (
        tf.data.Dataset.range(start, start + batches * batch_size)
        .shard(share.num_input_pipelines, share.input_pipeline_id)
        .map(example, num_parallel_calls=tf.data.AUTOTUNE)
        .batch(
            share.get_per_replica_batch_size(batch_size), drop_remainder=True
        )
        .prefetch(2)
    )


def training_transform(recipe: Recipe) -> Augment:
    """The recipe's augmentation of single images.

    Returns:
        Function of `(image, seed)` to a float32 image of the recipe's size:
        of an encoded image or RGB in 0...255, and an int64 pair.
    """
    if recipe.augmentation == "affine":
        resize = evaluation_transform(recipe)
        return lambda image, seed: random_affine(
            resize(image),
            seed,
            recipe.max_rotation,
            recipe.max_zoom,
            recipe.max_shift,
        )

    def transform(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        crop_seed, flip_seed, change_seed, erase_seed = tf.unstack(
            tf.random.split(seed, 4)
        )
        image = random_resized_crop(image, crop_seed, recipe.image_size)
        image = random_flip(image, flip_seed)
        image = rand_augment(image, change_seed)
        return random_erasing(image, erase_seed, recipe.random_erasing)

    return transform


def mixing(recipe: Recipe, classes: int) -> Mix:
    """The recipe's label smoothing, Mixup and CutMix.

    Args:
        recipe: the recipe.
        classes: number of classes.

    Returns:
        Function of `(images, labels, seed)` to `(images, targets)`.
    """
    alphas = recipe.mixup_alpha, recipe.cutmix_alpha
    if recipe.mixing_batch_size == 1 or not any(alphas):
        return lambda images, labels, seed: (
            images,
            smooth_one_hot(labels, classes, recipe.label_smoothing),
        )
    return lambda images, labels, seed: mixup_cutmix(
        images,
        labels,
        classes,
        seed,
        *alphas,
        0.5 if all(alphas) else float(recipe.cutmix_alpha > 0),
        recipe.label_smoothing,
    )


def evaluation_transform(recipe: Recipe) -> Transform:
    """`center_crop` to the recipe's image size."""
    return center_crop((recipe.image_size, recipe.image_size))


def center_crop(size: tuple[int, int], crop_ratio: float = 1.0) -> Transform:
    """Resizing of the shorter side and a center crop, as in Pillow.

    Args:
        size: height and width in pixels.
        crop_ratio: share of the shorter side to keep, in (0, 1].

    Returns:
        Function of an encoded image or RGB in 0...255 to a float32 image of
        the size.

    Example:
    >>> ramp = tf.tile(tf.reshape(tf.range(8.0), (8, 1, 1)), (1, 8, 3))
    >>> center_crop((8, 8), 0.5)(ramp)[:, 0, 0].numpy().tolist()
    [2.0, 2.0, 3.0, 3.0, 4.0, 4.0, 5.0, 5.0]
    """

    def transform(image: tf.Tensor) -> tf.Tensor:
        if image.dtype == tf.string:
            image = decode_image(image)
        if image.shape == (*size, 3) and crop_ratio == 1.0:
            return tf.cast(image, tf.float32)
        return resize_and_crop_in_graph(image, size, crop_ratio)

    return transform


def prepared(examples: Examples, recipe: Recipe) -> Examples:
    """The examples with their images as the model's input."""
    transform = evaluation_transform(recipe)

    def read(index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image, label = examples.read(index)
        return transform(image), label

    return replace(examples, read=read)


def find_unreadable(
    examples: Examples,
    known: set[int],
    augment: Augment,
    recipe: Recipe,
    step: int,
) -> set[int]:
    """Numbers of a step's examples that cannot be read, except known ones."""
    found = set()
    first = step * recipe.global_batch_size
    for place in range(first, first + recipe.global_batch_size):
        position = tf.constant(place, tf.int64)
        number = int(index_at(position, examples, recipe))
        number = examples.next_without(number, known)
        seed = tf.stack([tf.constant(recipe.seed, tf.int64), position])

        def transform(image: tf.Tensor, seed: tf.Tensor = seed) -> tf.Tensor:
            return augment(image, seed)

        if not is_readable(examples, number, transform):
            found.add(number)
    return found


@contextmanager
def naming_unreadable(
    examples: Examples, transform: Transform
) -> Iterator[None]:
    """Names the images that cannot be read when their evaluation fails.

    Args:
        examples, transform: as in `evaluation_batches`.

    Raises:
        ValueError: as in `check_all_readable`.
    """
    try:
        yield
    except (
        tf.errors.InvalidArgumentError,
        tf.errors.NotFoundError,
        tf.errors.DataLossError,  # a record with a wrong checksum
    ):
        check_all_readable([examples], transform)
        raise


def check_all_readable(parts: Sequence[Examples], transform: Transform) -> None:
    """Checks that all validation images can be read.

    Args:
        parts: the images.
        transform: as in `evaluation_batches`.

    Raises:
        ValueError: some cannot be read. The message names them.
    """
    names = [
        part.name(number)
        for part in parts
        for number in range(part.count)
        if not is_readable(part, number, transform)
    ]
    if names:
        raise ValueError(
            "Validation images cannot be read. Replace them, or remove them "
            f"and start again: {', '.join(names)}"
        ) from None  # TensorFlow's own says less


def is_readable(examples: Examples, number: int, transform: Transform) -> bool:
    """Whether an example can be read and transformed."""
    try:
        image, _ = examples.read(tf.constant(number, tf.int64))
        transform(image)
        return True
    except tf.errors.OpError:
        return False
