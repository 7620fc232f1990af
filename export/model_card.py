"""Name, description and measured accuracy of an exported model."""

import json
from pathlib import Path

import keras_cait
from keras_cait.weights import CHECKPOINTS

# Of the published weights.
AUTHORS = (
    "Hugo Touvron, Matthieu Cord, Alexandre Sablayrolles, Gabriel Synnaeve, "
    "Hervé Jégou"
)


def measured_accuracy(weights, model):
    """What the weights are known to reach, at the size of the model's images.

    Args:
        weights: as of `export.loading.trained_model`.
        model: `CaiT`, what `export.loading.trained_model` made of them.

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
        weights: as of `export.loading.trained_model`.
        model: `CaiT`, what `export.loading.trained_model` made of them.

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
