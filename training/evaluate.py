"""Accuracy of a model on a data set."""

import keras
import numpy as np
import tensorflow as tf

from training.data import evaluation_batches


def evaluate(model, examples, batch_size=250):
    """Runs a model on all examples.

    Args:
        model: Keras model of images to logits or probabilities.
        examples: `training.data.Examples`.
        batch_size: int. Images of a batch.

    Returns:
        dict: `top1` and `top5`, in 0...1, and `confusion`, a
        `(classes, classes)` list of counts: labels in rows, predictions in
        columns.
    """
    batches = evaluation_batches(examples, tf.identity, batch_size)
    labels = np.concatenate([labels for _, labels, _ in batches])
    scores = model.predict(batches.map(lambda image, *_: image), verbose=0)
    # The last batch is padded.
    labels, scores = labels[: examples.count], scores[: examples.count]

    def top(k):
        hits = keras.metrics.sparse_top_k_categorical_accuracy(
            labels, scores, k=k
        )
        return float(np.mean(hits))

    confusion = tf.math.confusion_matrix(
        labels, scores.argmax(axis=-1), num_classes=scores.shape[-1]
    )
    return {
        "top1": top(1),
        "top5": top(5),
        "confusion": confusion.numpy().tolist(),
    }
