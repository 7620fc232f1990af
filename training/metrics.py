"""Accuracy and calibration."""

from typing import NamedTuple

import numpy as np


class Answers(NamedTuple):
    """What a model answered to pictures, one row each.

    Attributes:
        right: bool array `(pictures, k)`. Whether the class of each of the k
            highest probabilities, highest first, is a label of the picture.
        labelled: bool array `(pictures,)`. Whether it has a label at all; in
            ImageNet-ReaL some have none, and do not count.
        confidence: float32 array `(pictures,)`. Highest probability.
    """

    right: np.ndarray
    labelled: np.ndarray
    confidence: np.ndarray


def answers(probabilities, labels, k=5):
    """Compares probabilities with labels.

    Args:
        probabilities: array `(pictures, classes)`.
        labels: int array `(pictures,)`; or `(pictures, classes)` of 0 and 1,
            where a picture has any number of labels.
        k: int. How many of the classes to keep.

    Returns:
        `Answers`.

    Example:
    >>> answers(np.array([[0.1, 0.7, 0.2]]), np.array([2])).right.tolist()
    [[False, True, False]]
    """
    probabilities, labels = np.asarray(probabilities), np.asarray(labels)
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
    if labels.ndim == 1:
        right = best == labels[:, None]
        labelled = np.ones(len(labels), bool)
    else:
        right = np.take_along_axis(labels, best, axis=1) > 0
        labelled = labels.any(axis=1)
    return Answers(right, labelled, probabilities.max(axis=1))


def metrics(found, bins=15):
    """Top-1, top-5 and calibration, over the pictures that have a label.

    A picture is right if any of its labels is among the first 1 or 5: the
    metric of ImageNet-ReaL, and the usual one where there is one label.

    Args:
        found: `Answers`.
        bins: int. Intervals of confidence for the calibration error.

    Returns:
        dict of `top1`, `top5` and `ece`, in 0...1, and `images`. `ece` is the
        mean of |accuracy - confidence| over intervals of equal width, weighted
        by their pictures.

    Reference: Beyer et al., 2020 (ReaL, arXiv 2006.07159); Guo et al., 2017
    (ECE, arXiv 1706.04599).
    """
    right, confidence = (
        array[found.labelled] for array in (found.right, found.confidence)
    )
    # The intervals are (0, 1/15], (1/15, 2/15], ...
    places = np.ceil(confidence * bins).astype(int) - 1
    gaps = np.bincount(places.clip(0), right[:, 0] - confidence, bins)
    return {
        "top1": float(right[:, 0].mean()),
        "top5": float(right.any(axis=1).mean()),
        "ece": float(np.abs(gaps).sum() / len(right)),
        "images": len(right),
    }


def joined(parts):
    return Answers(*map(np.concatenate, zip(*parts, strict=True)))
