"""Name, description and measured accuracy of an exported model."""

from pathlib import Path
from typing import TypedDict

import keras_cait
from keras_cait.files import read_json
from keras_cait.loading import published

# Of the published weights.
AUTHORS = (
    "Hugo Touvron, Matthieu Cord, Alexandre Sablayrolles, Gabriel Synnaeve, "
    "Hervé Jégou"
)


class Accuracy(TypedDict):
    """Measured accuracy: shares of the images in 0...1, and the dataset."""

    top1: float
    top5: float
    of: str


class Description(TypedDict, total=False):
    """What a `.tflite` file says about its model."""

    name: str
    description: str
    version: str
    author: str
    license: str


def measured_accuracy(
    source: str | Path, model: keras_cait.CaiT
) -> Accuracy | None:
    """Accuracy known for a model at the size of its images.

    Args:
        source: as in `export.exportable.load_exportable`.
        model: the model loaded from it.

    Returns:
        Accuracy on the validation images of the training run that wrote the
        weights, or on ImageNet-1k for published weights. `None` if unknown.

    Example:
    >>> model = keras_cait.CaiT_XXS24(weights=None)
    >>> f"{measured_accuracy('XXS24', model)['top1']:.1%}"
    '78.4%'
    """
    row = published(source)
    if row:
        if (row.image_size, row.image_size) != model.image_shape[:2]:
            return None
        return {
            "top1": row.measured_top_1 / 100,
            "top5": row.measured_top_5 / 100,
            "of": f"ImageNet-1k (timm's evaluation of {row.repository})",
        }
    path = Path(source)
    run = path if path.is_dir() else path.parent
    summary, recipe = run / "summary.json", run / "recipe.json"
    is_run = summary.is_file() and recipe.is_file()
    if path not in (run, run / "model.keras") or not is_run:
        return None
    size = read_json(recipe, ["image_size"])["image_size"]
    if (size, size) != model.image_shape[:2]:
        return None
    measured = read_json(summary, ["top1", "top5"])
    return {
        "top1": measured["top1"],
        "top5": measured["top5"],
        "of": "the validation images of the training run",
    }


def describe_model(source: str | Path, model: keras_cait.CaiT) -> Description:
    """Describes a model for the metadata of a `.tflite` file.

    Args:
        source, model: as in `measured_accuracy`.

    Returns:
        Name, description and version of keras-cait; author and license of
        published weights.

    Example:
    >>> model = keras_cait.CaiT_XXS24(weights=None)
    >>> describe_model("XXS24", model)["license"]
    'Apache-2.0'
    """
    height, width, _ = model.image_shape
    text = (
        f"CaiT image classifier: {model.classes} classes, {height} x {width} "
        "input (arXiv 2103.17239)."
    )
    accuracy = measured_accuracy(source, model)
    if accuracy:
        text += f" Top-1 accuracy {accuracy['top1']:.1%} on {accuracy['of']}."
    description: Description = {
        "name": model.name,
        "description": text,
        "version": keras_cait.__version__,
    }
    row = published(source)
    if row:
        description |= {"author": AUTHORS, "license": row.license}
    return description
