"""Label smoothing, Mixup and CutMix: pure functions of (images, labels, seed).

Every image is mixed with its mirror in the batch: the first with the last, the
second with the last but one. The whole batch shares its draws.

References:
    Zhang et al., mixup (https://arxiv.org/abs/1710.09412);
    Yun et al., CutMix (https://arxiv.org/abs/1905.04899);
    timm.data.mixup (1.0.31), recorded in tests/reference/recipe/mixup.npz.
"""

import tensorflow as tf


def smooth_one_hot(
    labels: tf.Tensor, classes: int, smoothing: float
) -> tf.Tensor:
    """Labels as distributions over the classes.

    Args:
        labels: `(batch,)` int tensor in 0...classes - 1.
        classes: number of classes.
        smoothing: share in 0...1 that is spread evenly over all classes, the
            label included.

    Returns:
        `(batch, classes)` float32 tensor; each row sums to 1.

    Example:
    >>> print(smooth_one_hot([1], 2, 0.1).numpy())
    [[0.05 0.95]]

    References:
        Szegedy et al., Rethinking the Inception Architecture, section 7
        (https://arxiv.org/abs/1512.00567).
    """
    return tf.one_hot(labels, classes, 1.0 - smoothing) + smoothing / classes


def mixup_cutmix(
    images: tf.Tensor,
    labels: tf.Tensor,
    classes: int,
    seed: tf.Tensor,
    mixup_alpha: float = 0.8,
    cutmix_alpha: float = 1.0,
    switch_probability: float = 0.5,
    label_smoothing: float = 0.1,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Mixes the images of a batch, and their labels, by Mixup or CutMix.

    Args:
        images: `(batch, height, width, channels)` float32 tensor.
        labels: `(batch,)` int tensor in 0...classes - 1.
        classes: number of classes.
        seed: pair of ints. The same seed and batch give the same result.
        mixup_alpha: > 0. Mixup draws the weight of an image itself from
            Beta(mixup_alpha, mixup_alpha).
        cutmix_alpha: > 0. The same for CutMix.
        switch_probability: probability of CutMix, otherwise Mixup. At 0 and 1
            the alpha of the one that is left out may be 0.
        label_smoothing: share in 0...1 of a target that is spread over all
            classes.

    Returns:
        Images like `images`, and targets: a `(batch, classes)` float32 tensor
        whose rows sum to 1.

    Example:
    >>> images = tf.zeros((4, 8, 8, 3))
    >>> images, targets = mixup_cutmix(images, [0, 1, 2, 3], 4, (0, 1))
    >>> images.shape, targets.shape
    (TensorShape([4, 8, 8, 3]), TensorShape([4, 4]))
    """
    height, width = tf.unstack(tf.shape(images)[1:3])
    switch_seed, mixup_seed, cutmix_seed, center_seed = tf.unstack(
        tf.random.split(seed, 4)
    )
    is_cutmix = tf.random.stateless_uniform((), switch_seed)
    is_cutmix = is_cutmix < switch_probability
    share = tf.where(
        is_cutmix,
        _beta(cutmix_alpha, cutmix_seed),
        _beta(mixup_alpha, mixup_seed),
    )
    center = tf.random.stateless_uniform((2,), center_seed)
    center = tf.floor(center * tf.cast([height, width], tf.float32))
    box = cutmix_box(height, width, share, center)
    targets = smooth_one_hot(labels, classes, label_smoothing)
    return mix(images, targets, is_cutmix, share, box)


def _beta(alpha: float, seed: tf.Tensor) -> tf.Tensor:
    first, second = tf.unstack(tf.random.stateless_gamma((2,), seed, alpha))
    return first / (first + second)


def cutmix_box(
    height: tf.Tensor, width: tf.Tensor, share: tf.Tensor, center: tf.Tensor
) -> tf.Tensor:
    """The box of CutMix, clipped to the image.

    Args:
        height, width: int scalars. Size of the images in pixels.
        share: float32 scalar in 0...1. Share of the area outside the box,
            before clipping.
        center: `(2,)` float32 tensor. Row and column of the box's center.

    Returns:
        `(4,)` float32 tensor: top, bottom, left, right. Bottom and right are
        the first row and column outside the box.

    Example:
    >>> print(cutmix_box(8, 8, 0.75, tf.constant([4.0, 4.0])).numpy())
    [2. 6. 2. 6.]
    """
    size = tf.cast(tf.stack([height, width]), tf.float32)
    sides = tf.floor(size * tf.sqrt(1.0 - share))
    start = tf.maximum(center - tf.floor(sides / 2.0), 0.0)
    stop = tf.minimum(center + tf.floor((sides + 1.0) / 2.0), size)
    return tf.stack([start[0], stop[0], start[1], stop[1]])


@tf.function(autograph=False, jit_compile=True)  # in one pass
def mix(
    images: tf.Tensor,
    targets: tf.Tensor,
    is_cutmix: tf.Tensor,
    share: tf.Tensor,
    box: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Mixes a batch with its mirror image, for given draws.

    Args:
        images: `(batch, height, width, channels)` float32 tensor of finite
            values.
        targets: `(batch, classes)` float32 tensor.
        is_cutmix: bool scalar.
        share: float32 scalar in 0...1. Weight of the image itself in Mixup.
        box: `(4,)` float32 tensor, as in `cutmix_box`. CutMix takes the pixels
            in the box from the mirror image; its targets are weighted by area.

    Returns:
        Images and targets, like the given ones.

    Example:
    >>> images, targets = tf.ones((2, 4, 4, 3)), tf.eye(2)
    >>> box = tf.constant([0.0, 4.0, 0.0, 1.0])
    >>> print(mix(images, targets, True, 1.0, box)[1].numpy())
    [[0.75 0.25]
     [0.25 0.75]]
    """
    top, bottom, left, right = tf.unstack(box)
    height, width = images.shape[1:3]
    replaced = (bottom - top) * (right - left) / (height * width)
    row = tf.range(float(height))[:, None, None]
    column = tf.range(float(width))[:, None]
    is_in_box = (
        (row >= top) & (row < bottom) & (column >= left) & (column < right)
    )
    weights = tf.where(is_cutmix, tf.where(is_in_box, 0.0, 1.0), share)
    share = tf.where(is_cutmix, 1.0 - replaced, share)
    return _blend(images, weights), _blend(targets, share)


def _blend(values: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
    return values * weight + tf.reverse(values, [0]) * (1.0 - weight)
