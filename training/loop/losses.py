"""Losses of the recipes: one number per example.

A step's loss is `tf.reduce_sum(losses) / global_batch_size`, so the parts of a
batch, on any number of replicas or micro-batches, add up to its mean. Logits of
any float dtype are cast to float32 first.
"""

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf


def soft_target_cross_entropy(
    targets: tf.Tensor, logits: tf.Tensor
) -> tf.Tensor:
    """Cross-entropy with distributions, such as those of Mixup and CutMix.

    Args:
        targets: `(batch, classes)` float tensor; each row sums to 1.
        logits: `(batch, classes)` float tensor.

    Returns:
        `(batch,)` float32 tensor.

    Example:
    >>> print(soft_target_cross_entropy([[0.5, 0.5]], [[0.0, 0.0]]).numpy())
    [0.6931472]
    """
    return tf.nn.softmax_cross_entropy_with_logits(
        tf.cast(targets, tf.float32), tf.cast(logits, tf.float32)
    )


def hard_distillation(
    teacher_logits: tf.Tensor, logits: tf.Tensor
) -> tf.Tensor:
    """Cross-entropy with the teacher's most likely class.

    DeiT and CaiT train with the mean of this and the loss of the targets.

    Args:
        teacher_logits: `(batch, classes)` float tensor.
        logits: `(batch, classes)` float tensor of the student.

    Returns:
        `(batch,)` float32 tensor.

    Example:
    >>> print(hard_distillation([[0.0, 3.0]], [[0.0, 0.0]]).numpy())
    [0.6931472]

    References:
        Touvron et al., DeiT, section 4, equation 3
        (https://arxiv.org/abs/2012.12877).
    """
    return tf.nn.sparse_softmax_cross_entropy_with_logits(
        tf.argmax(teacher_logits, axis=-1), tf.cast(logits, tf.float32)
    )


def soft_distillation(
    teacher_logits: tf.Tensor, logits: tf.Tensor, temperature: float
) -> tf.Tensor:
    """Divergence from the teacher's distribution at a temperature.

    Args:
        teacher_logits: `(batch, classes)` float tensor.
        logits: `(batch, classes)` float tensor of the student.
        temperature: > 0. Divides both logits.

    Returns:
        `(batch,)` float32 tensor: temperature^2 KL(teacher || student) divided
        by the number of classes. The division is in DeiT's code, not in its
        paper.

    Example:
    >>> print(soft_distillation([[0.0, 0.0]], [[4.0, 4.0]], 3.0).numpy())
    [0.]

    References:
        Touvron et al., DeiT, section 4, equation 2
        (https://arxiv.org/abs/2012.12877); its losses.py.
    """
    teacher = tf.nn.log_softmax(
        tf.cast(teacher_logits, tf.float32) / temperature
    )
    student = tf.nn.log_softmax(tf.cast(logits, tf.float32) / temperature)
    divergence = tf.reduce_mean(tf.exp(teacher) * (teacher - student), axis=-1)
    return temperature**2 * divergence


def balanced(
    loss: Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor],
    counts: Sequence[int],
) -> Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]:
    """A loss under which all classes count the same, by logit adjustment.

    The logarithms of the classes' frequencies are added to the logits in the
    loss alone. The model need not learn the frequencies, and its own logits
    are those for equally frequent classes. Class weights have the same aim, but
    lose their effect once a model fits its training images, and a rare class
    of large weight makes steps of large gradient.

    Args:
        loss: function of `(images, targets, logits)` to losses `(batch,)`.
        counts: training images per class, all > 0.

    Returns:
        A function like `loss`; `loss` itself if all counts are equal.

    References:
        Menon et al., 2021 (https://arxiv.org/abs/2007.07314), section 4.2.
        Byrd and Lipton, 2019, on weights (https://arxiv.org/abs/1812.03372).
    """
    if len({*counts}) == 1:
        return loss
    shares = np.array(counts) / np.sum(counts)
    frequencies = tf.constant(np.log(shares), tf.float32)
    return lambda images, targets, logits: loss(
        images, targets, tf.cast(logits, tf.float32) + frequencies
    )
