"""The model of a run, and the weights that it starts from."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from keras_cait.labels import find_labels
from keras_cait.loading import published
from keras_cait.models import VARIANTS, CaiT
from keras_cait.optimizers import freeze
from keras_cait.pretrained import PRETRAINED, nearest_pretrained
from keras_cait.weights import load_pretrained, load_weights
from training.loop.rematerialization import rematerialize, rematerialize_mlp
from training.recipe import Recipe


def build(recipe: Recipe, classes: int) -> CaiT:
    """The recipe's model with random weights; it returns logits.

    Args:
        recipe: a resolved recipe.
        classes: number of classes.
    """
    model = CaiT(
        **recipe.architecture(),
        patch_size=recipe.patch_size,
        input_shape=(recipe.image_size, recipe.image_size, 3),
        classes=classes,
        classifier_activation=None,
        name="cait",
    )
    freeze(model, recipe.trainable)
    if recipe.rematerialize:
        rematerialize(model)
    else:
        rematerialize_mlp(model)
    return model


def check_weights(weights: str) -> None:
    """Checks that initial weights exist, before the model is built.

    Args:
        weights: as in `start_from`; empty for random ones.

    Raises:
        ValueError: there is no such file, folder or published model.
    """
    path = Path(weights)
    if not weights or path.is_file() or (path / "model.keras").is_file():
        return
    try:
        is_published = published(weights) is not None
    except ValueError:  # the variant is not published, or not at this size
        is_published = False
    if not is_published:
        names = ", ".join(f"{name}-{size}" for name, size in PRETRAINED)
        raise ValueError(
            f"There are no weights {weights!r}. Give --weights the folder of a "
            f"finished run, a file, or a published model: {names}."
        )


def start_from(model: CaiT, weights: str, class_names: Sequence[str]) -> None:
    """Loads initial weights; of other classes, all but those of the head.

    Args:
        model: the model, which is changed in place.
        class_names: the model's classes. They are others than those of the
            weights if their number is, or if the weights have labels that are.
        weights: a file, the folder of a run, or the published weights of a
            variant: `"S24"` in the size nearest to the model's, `"S24-384"` in
            that size.

    Raises:
        ValueError: the file is missing, damaged, or of another architecture.
        OSError: published weights are neither in the cache nor reachable.
    """
    if weights in VARIANTS:
        row = nearest_pretrained(weights, model.input.shape[1:3])
    else:
        row = published(weights)
    if row:
        load_pretrained(model, row)
        return
    path = Path(weights)
    if (path / "model.keras").is_file():
        path /= "model.keras"
    if find_labels(path) in (None, [*class_names]):
        with suppress(ValueError):  # another number of classes
            load_weights(model, path)
            return
    body = CaiT.from_config({**model.get_config(), "include_top": False})
    load_weights(body, path)
    for layer in body.layers:
        model.get_layer(layer.name).set_weights(layer.get_weights())
    print(f"Loaded all weights except the head from {weights}")
