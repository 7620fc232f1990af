"""What a recipe does to pictures between the data set and the model."""

import tensorflow as tf

from keras_cait.preprocessing import resize_and_crop_in_graph
from training.augmentation import (
    random_affine,
    random_erasing,
    random_flip,
    random_resized_crop,
)
from training.losses import smooth_one_hot
from training.mixing import mixup_cutmix
from training.randaugment import rand_augment


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
            picture = tf.io.decode_image(
                picture, channels=3, expand_animations=False
            )
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
