"""What is exported: a trained model and the names of its classes."""

import json
from collections import Counter
from pathlib import Path

import keras

import keras_cait
from keras_cait.preprocessing import imagenet_labels
from keras_cait.weights import CHECKPOINTS

# Of the published weights.
AUTHORS = (
    "Hugo Touvron, Matthieu Cord, Alexandre Sablayrolles, Gabriel Synnaeve, "
    "Hervé Jégou"
)


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


def measured_accuracy(weights, model):
    """What the weights are known to reach, at the size of the model's images.

    Args:
        weights: as of `trained_model`.
        model: `CaiT`, what `trained_model` made of them.

    Returns:
        dict of `top1` and `top5`, shares of the pictures, and `of`, where
        they were measured: the run that wrote the weights, or ImageNet-1k for
        published ones. `None` where nothing is known.

    Example:
    >>> model = keras_cait.CaiT_XXS24(weights=None)
    >>> f"{measured_accuracy('imagenet', model)['top1']:.1%}"
    '78.4%'
    """
    summary = Path(weights).with_name("summary.json")
    if weights == "imagenet":
        size = model.image_shape[0]
        row = CHECKPOINTS.get((model.name.removeprefix("cait_").upper(), size))
        return row and {
            "top1": row.measured_top_1 / 100,
            "top5": row.measured_top_5 / 100,
            "of": f"ImageNet-1k, by timm's evaluation of {row.repository}",
        }
    if Path(weights).name == "model.keras" and summary.is_file():
        measured = json.loads(summary.read_text())
        return {
            "top1": measured["top1"],
            "top5": measured["top5"],
            "of": "the training run's held-out pictures",
        }
    return None


def description(weights, model):
    """What to tell of a model in a file of its own.

    Args:
        weights: as of `trained_model`.
        model: `CaiT`, what `trained_model` made of them.

    Returns:
        dict of str: `name`, `description`, `version` (of keras_cait); of
        published weights `author` and `license` as well.

    Example:
    >>> model = keras_cait.CaiT_XXS24(weights=None)
    >>> description("imagenet", model)["license"]
    'Apache-2.0'
    """
    height, width, _ = model.image_shape
    sentences = [
        f"CaiT (arXiv 2103.17239) that tells {model.classes} classes of "
        f"pictures of {height} x {width} pixels apart."
    ]
    accuracy = measured_accuracy(weights, model)
    if accuracy:
        sentences.append(f"Top-1 {accuracy['top1']:.1%} on {accuracy['of']}.")
    about = {
        "name": model.name,
        "description": " ".join(sentences),
        "version": keras_cait.__version__,
    }
    if weights == "imagenet":
        about |= {"author": AUTHORS, "license": "Apache-2.0"}
    return about
