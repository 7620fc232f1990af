"""Losses of the recipes: one number for each example.

A step's loss is `tf.reduce_sum(loss) / global_batch_size`: parts of a batch, on
any number of replicas or micro-batches, then add up to the mean over the whole.
Logits of any float dtype are taken to float32 first.
"""

import tensorflow as tf


def soft_target_cross_entropy(targets, logits):
    """Cross-entropy with distributions, as Mixup and CutMix make them.

    Args:
        targets: `(batch, classes)` float tensor; rows sum to 1.
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


def hard_distillation(teacher_logits, logits):
    """Cross-entropy with the class that the teacher finds likeliest.

    DeiT and CaiT train with the mean of this and the loss of the true targets.

    Args:
        teacher_logits: `(batch, classes)` float tensor.
        logits: `(batch, classes)` float tensor, the student's.

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


def soft_distillation(teacher_logits, logits, temperature):
    """Divergence from the teacher's distribution at a temperature.

    Args:
        teacher_logits: `(batch, classes)` float tensor.
        logits: `(batch, classes)` float tensor, the student's.
        temperature: float above 0. Both logits are divided by it.

    Returns:
        `(batch,)` float32 tensor: temperature^2 KL(teacher || student) divided
        by the number of classes. DeiT's paper has no such division, its code
        has.

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
