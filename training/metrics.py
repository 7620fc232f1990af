"""Accuracy, calibration and confusion of predictions, in NumPy."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Predictions(NamedTuple):
    """A model's predictions for images, compared with their labels.

    Attributes:
        correct: bool array `(images, k)`. Whether each of the k most probable
            classes, best first, is a label of the image.
        labeled: bool array `(images,)`. Whether the image has a label at all;
            in ImageNet-ReaL, some have none and do not count.
        confidence: float32 array `(images,)`. Highest probability.
    """

    correct: np.ndarray
    labeled: np.ndarray
    confidence: np.ndarray


def predictions(
    probabilities: np.ndarray, labels: np.ndarray, k: int = 5
) -> Predictions:
    """Compares probabilities with labels.

    Args:
        probabilities: array `(images, classes)`.
        labels: int array `(images,)`; or `(images, classes)` of 0 and 1, where
            an image has any number of labels.
        k: how many of the classes to keep.

    Raises:
        ValueError: a probability is not a number in 0...1.

    Example:
    >>> predictions(np.array([[0.1, 0.7, 0.2]]), np.array([2])).correct
    array([[False,  True, False]])
    """
    probabilities, labels = np.asarray(probabilities), np.asarray(labels)
    if np.isnan(probabilities).any():
        raise ValueError(
            "The model's predictions are NaN. Its training has diverged, or "
            "its precision is too low: try float32."
        )
    least, most = probabilities.min(initial=0), probabilities.max(initial=0)
    if least < -0.01 or most > 1.01:  # rounded by LiteRT
        raise ValueError(
            f"The model's predictions are from {least:.3g} to {most:.3g}. "
            "Expected probabilities. End the model with a softmax."
        )
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
    if labels.ndim == 1:
        correct = best == labels[:, None]
        labeled = np.ones(len(labels), bool)
    else:
        correct = np.take_along_axis(labels, best, axis=1) > 0
        labeled = np.asarray(labels.any(axis=1))
    return Predictions(correct, labeled, probabilities.max(axis=1))


def join(parts: Sequence[Predictions]) -> Predictions:
    """Concatenates the predictions of several batches."""
    return Predictions(*map(np.concatenate, zip(*parts, strict=True)))


def top_k(found: Predictions) -> dict[str, float]:
    """Top-1 and top-5 accuracy over the labeled images, in 0...1.

    An image counts as correct if any of its labels is among the first 1 or 5:
    the metric of ImageNet-ReaL, and the usual one with one label per image.

    Example:
    >>> found = predictions(np.array([[0.1, 0.7, 0.2]]), np.array([2]))
    >>> top_k(found)
    {'top1': 0.0, 'top5': 1.0}

    Reference: Beyer et al., 2020 (ReaL, arXiv 2006.07159).
    """
    correct = found.correct[found.labeled]
    return {
        "top1": float(correct[:, 0].mean()),
        "top5": float(correct.any(axis=1).mean()),
    }


def calibration_error(found: Predictions, bins: int = 15) -> float:
    """Expected calibration error (ECE) over the labeled images, in 0...1.

    The mean of |accuracy - confidence| over intervals of equal width, weighted
    by their number of images.

    Args:
        found: predictions.
        bins: number of intervals.

    Example:
    >>> sure = Predictions(np.array([[True]]), np.ones(1, bool), np.ones(1))
    >>> calibration_error(sure)
    0.0

    Reference: Guo et al., 2017 (arXiv 1706.04599).
    """
    correct = found.correct[found.labeled, 0]
    confidence = found.confidence[found.labeled]
    # The intervals are (0, 1/15], (1/15, 2/15], ...
    places = np.ceil(confidence * bins).astype(int) - 1
    gaps = np.bincount(places.clip(0), correct - confidence, bins)
    return float(np.abs(gaps).sum() / len(correct))


def confusion_matrix(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Counts of images: labels in rows, predictions in columns.

    Args:
        scores: array `(images, classes)` of logits or probabilities.
        labels: int array `(images,)`.

    Example:
    >>> scores = np.array([[0.9, 0.1, 0.0], [0.2, 0.3, 0.5]])
    >>> confusion_matrix(scores, np.array([0, 1]))
    array([[1, 0, 0],
           [0, 0, 1],
           [0, 0, 0]])
    """
    classes = scores.shape[-1]
    places = classes * labels + scores.argmax(axis=-1)
    return np.bincount(places, minlength=classes**2).reshape(classes, classes)


def class_accuracies(confusion: np.ndarray) -> np.ndarray:
    """Accuracy on each class' images; NaN for a class without images.

    Args:
        confusion: as in `confusion_matrix`.

    Example:
    >>> class_accuracies(np.array([[3, 1], [0, 0]]))
    array([0.75,  nan])
    """
    counts = confusion.sum(axis=1)
    shares = confusion.diagonal() / np.maximum(counts, 1)
    return np.where(counts, shares, np.nan)


def balanced_accuracy(confusion: np.ndarray) -> float:
    """Mean accuracy of the classes that have images, in 0...1.

    Example:
    >>> balanced_accuracy(np.array([[8, 0], [1, 1]]))
    0.75
    """
    return float(np.nanmean(class_accuracies(confusion)))
