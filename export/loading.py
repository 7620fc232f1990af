"""What is exported: a trained model and the names of its classes."""

from collections import Counter
from pathlib import Path

import keras

import keras_cait
from keras_cait.preprocessing import imagenet_labels


def trained_model(weights, variant=None, image_size=None, classes=1000):
    """The model of a file, or of published weights.

    Args:
        weights: path of a `.keras` file, which holds the model as well; or,
            with a variant, `"imagenet"` or the path of any file that
            `keras_cait.load_checkpoint` reads.
        variant: str, a key of `keras_cait.VARIANTS`, or `None`.
        image_size: int. Side of the pictures in pixels; `None` is the
            variant's own.
        classes: int. Number of classes, of a variant.

    Returns:
        `CaiT`.

    Raises:
        ValueError: the arguments do not fit, or the file holds no CaiT.
        OSError: published weights are neither in the cache nor reachable.

    Example:
    >>> trained_model("imagenet", "S24")  # doctest: +SKIP
    """
    if variant is None:
        if Path(weights).suffix != ".keras":
            raise ValueError(
                f"{weights} does not say which model it is of. Add the "
                f"variant, such as --variant S24, or give a .keras file."
            )
        if image_size is not None:
            raise ValueError(
                f"{weights} says itself which pictures it takes. Leave "
                "--image-size away, or give the --variant as well."
            )
        try:
            return keras.models.load_model(weights, compile=False)
        except TypeError as error:  # of a layer that nobody has registered
            reason, *_ = str(error).splitlines()
            raise ValueError(f"{weights} holds no CaiT. {reason}") from error
    build = getattr(keras_cait, f"CaiT_{variant}")
    return build(
        weights=str(weights),
        input_shape=image_size and (image_size, image_size, 3),
        classes=classes,
    )


def class_labels(weights, path=None):
    """The names of the classes, in order.

    Args:
        weights: as of `trained_model`.
        path: text file with one label a line. `None` takes `labels.txt`
            beside the weights and, where there is none, ImageNet's labels.

    Returns:
        list of str.

    Raises:
        ValueError: there is no such file, or its labels are none, empty or
            the same.

    Example:
    >>> class_labels("imagenet")[1]
    'goldfish'
    """
    beside = Path(weights).parent / "labels.txt"
    if path is None and (weights == "imagenet" or not beside.is_file()):
        return [label for _, label in imagenet_labels()]
    path = Path(path or beside)
    if not path.is_file():
        raise ValueError(
            f"There are no labels at {path}. Give a text file with one label "
            "a line: --labels FILE."
        )
    labels = path.read_text(encoding="utf-8").splitlines()
    if not labels or not all(labels):
        raise ValueError(
            f"{path} must hold one label a line, without empty lines. It has "
            f"{len(labels)} lines, {labels.count('')} of them empty."
        )
    if len(set(labels)) < len(labels):
        (label, count), *_ = Counter(labels).most_common(1)
        raise ValueError(
            f"Every class needs a label of its own. {path} has {label!r} "
            f"{count} times."
        )
    return labels
