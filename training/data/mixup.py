"""Mixup and CutMix: pure functions of (images, labels, seed).

Every image is mixed with its mirror in the batch: the first with the last, the
second with the last but one.

References:
    Zhang et al., mixup (https://arxiv.org/abs/1710.09412);
    Yun et al., CutMix (https://arxiv.org/abs/1905.04899);
    timm.data.mixup (1.0.31), recorded in tests/reference/recipe/mixup.npz.
"""

from typing import Literal

import tensorflow as tf


def smooth_one_hot(labels, classes, smoothing):
    """Labels as distributions, a share of which is spread over all classes.

    Args:
        labels: `(batch,)` int tensor in 0...classes - 1.
        classes: int.
        smoothing: float in 0...1. Share that is spread, the label included.

    Returns:
        `(batch, classes)` float32 tensor; rows sum to 1.

    Example:
    >>> print(smooth_one_hot([1], 2, 0.1).numpy())
    [[0.05 0.95]]

    References:
        Szegedy et al., Rethinking the Inception Architecture, section 7
        (https://arxiv.org/abs/1512.00567).
    """
    return tf.one_hot(labels, classes, 1.0 - smoothing) + smoothing / classes


def mixup_cutmix(
    images,
    labels,
    classes,
    seed,
    mixup_alpha=0.8,
    cutmix_alpha=1.0,
    switch_probability=0.5,
    label_smoothing=0.1,
    mode: Literal["batch", "pair", "elem"] = "batch",
):
    """Mixes images with each other, by Mixup or CutMix, and labels alike.

    Args:
        images: `(batch, height, width, channels)` float32 tensor.
        labels: `(batch,)` int tensor in 0...classes - 1.
        classes: int.
        seed: pair of ints. The same seed and batch give the same result.
        mixup_alpha: float above 0. Mixup's share of an image itself is drawn
            from Beta(mixup_alpha, mixup_alpha).
        cutmix_alpha: float above 0. The same for CutMix.
        switch_probability: float in 0...1. Share of CutMix, else Mixup.
        label_smoothing: float in 0...1. Share of a target spread over all
            classes.
        mode: what shares its draws: the whole `"batch"`, a `"pair"` of images
            that are mixed with each other, or nothing, for each `"elem"`.

    Returns:
        Images like `images`, and targets, `(batch, classes)` float32 tensor
        whose rows sum to 1.

    Example:
    >>> images = tf.zeros((4, 8, 8, 3))
    >>> images, targets = mixup_cutmix(images, [0, 1, 2, 3], 4, (0, 1))
    >>> images.shape, targets.shape
    (TensorShape([4, 8, 8, 3]), TensorShape([4, 4]))
    """
    batch, height, width = tf.unstack(tf.shape(images)[:3])
    count = {"batch": 1, "pair": (batch + 1) // 2, "elem": batch}[mode]
    switch_seed, mixup_seed, cutmix_seed, centre_seed = tf.unstack(
        tf.random.split(seed, 4)
    )
    is_cutmix = (
        tf.random.stateless_uniform((count,), switch_seed) < switch_probability
    )
    share = tf.where(
        is_cutmix,
        _beta(cutmix_alpha, count, cutmix_seed),
        _beta(mixup_alpha, count, mixup_seed),
    )
    centre = tf.random.stateless_uniform((count, 2), centre_seed)
    centre = tf.floor(centre * tf.cast([height, width], tf.float32))
    boxes = cutmix_boxes(height, width, share, centre)
    if mode == "pair":
        is_cutmix, share, boxes = (
            tf.concat([x, tf.reverse(x[: batch // 2], [0])], axis=0)
            for x in (is_cutmix, share, boxes)
        )
    targets = smooth_one_hot(labels, classes, label_smoothing)
    return mix(images, targets, is_cutmix, share, boxes)


def _beta(alpha, count, seed):
    gamma = tf.random.stateless_gamma((2, count), seed, alpha)
    return gamma[0] / (gamma[0] + gamma[1])


def cutmix_boxes(height, width, share, centre):
    """Boxes of CutMix, cut off at the picture's rim.

    Args:
        height, width: int scalars. Size of a picture in pixels.
        share: `(count,)` float32 in 0...1. Share of the area outside a box,
            before it is cut off.
        centre: `(count, 2)` float32. Row and column of a box's centre.

    Returns:
        `(count, 4)` float32 tensor: top, bottom, left, right; bottom and right
        are the first row and column outside.
    """
    size = tf.cast(tf.stack([height, width]), tf.float32)
    part = tf.floor(size * tf.sqrt(1.0 - share)[:, None])
    start = tf.maximum(centre - tf.floor(part / 2.0), 0.0)
    stop = tf.minimum(centre + tf.floor((part + 1.0) / 2.0), size)
    return tf.stack([start[:, 0], stop[:, 0], start[:, 1], stop[:, 1]], axis=1)


def mix(images, targets, is_cutmix, share, boxes):
    """Mixes a batch with its mirror image, by given draws.

    Args:
        images: `(batch, height, width, channels)` float32 tensor.
        targets: `(batch, classes)` float32 tensor.
        is_cutmix: `(batch,)` bool tensor, or `(1,)` for all images alike, as
            are the following.
        share: `(batch,)` float32 in 0...1. Mixup's share of the image itself.
        boxes: `(batch, 4)` float32, as from `cutmix_boxes`. CutMix takes them
            from the mirror image, and their share of the area follows.

    Returns:
        Images and targets like the given.
    """
    height, width = tf.unstack(tf.shape(images)[1:3])
    rows = tf.range(height, dtype=tf.float32)[:, None]
    columns = tf.range(width, dtype=tf.float32)
    top, bottom, left, right = (
        x[:, None, None] for x in tf.unstack(boxes, axis=1)
    )
    outside = (rows < top) | (rows >= bottom) | (columns < left)
    outside = tf.cast(outside | (columns >= right), tf.float32)
    share = tf.where(is_cutmix, tf.reduce_mean(outside, (1, 2)), share)
    weight = tf.where(is_cutmix[:, None, None], outside, share[:, None, None])
    # Flat, as broadcasting over channels takes twice as long.
    weight = tf.repeat(weight[..., None], tf.shape(images)[3], axis=3)
    mixed = _blend(_flat(images), _flat(weight))
    return (
        tf.ensure_shape(tf.reshape(mixed, tf.shape(images)), images.shape),
        _blend(targets, share[:, None]),
    )


def _flat(images):
    return tf.reshape(images, (tf.shape(images)[0], -1))


def _blend(values, weight):
    return values * weight + tf.reverse(values, [0]) * (1.0 - weight)
