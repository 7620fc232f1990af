"""The recipes of the paper, of the quickstart and of fine-tuning.

This module imports neither Keras nor TensorFlow: `--help` lists the recipes
without waiting for them.
"""

from dataclasses import replace
from typing import Any, NamedTuple, get_args

from training.recipe import Recipe, Variant


def at_resolution(recipe: Recipe, image_size: int, **changes: Any) -> Recipe:
    """Fine-tuning at a larger size, from a model of 224 pixels.

    It is the published one; where there is none, `--weights` must name the run
    at 224 pixels. Settings of the authors for M48 at 448 (deit issue 108) and
    of DeiT at 384: few epochs at a small learning rate, which is constant after
    the warm-up.
    """
    settings = {
        "weights": "imagenet-224",
        "image_size": image_size,
        "epochs": 30,
        "global_batch_size": 512,
        "learning_rate": 5e-6,
        "min_learning_rate": 5e-6,
        "weight_decay": 1e-8,
    }
    return replace(recipe, **(settings | changes))


def distilled(recipe: Recipe) -> Recipe:
    """The same recipe with hard distillation.

    `--teacher` is a Keras model. DeiT's teacher was a RegNetY-16GF with 82.9 %
    top-1.
    """
    return replace(recipe, distillation="hard", distillation_weight=0.5)


def transfer(data: str, **changes: Any) -> Recipe:
    """Fine-tuning of a published model on another dataset at 224 pixels.

    Settings that the authors gave for DeiT (deit issues 45, 105 and 141).
    """
    settings = {
        "data": data,
        "weights": "imagenet",
        "epochs": 1000,
        "global_batch_size": 768,
        "optimizer": "sgd",
        "learning_rate": 0.01 * 512 / 768,
        "weight_decay": 1e-4,
        "drop_path_rate": 0.0,
        "random_erasing": 0.0,
        "repeated_augmentation": 1,
        "mixing_batch_size": 32,
    }
    return replace(Recipe(), **(settings | changes))


def inaturalist(data: str) -> Recipe:
    """Fine-tuning on iNaturalist: as `transfer`, with its own settings.

    TensorFlow Datasets has the dataset of 2018; that of 2019 is read from a
    folder: `--data folder:PATH`.
    """
    return transfer(
        data,
        epochs=360,
        optimizer="adamw",
        learning_rate=7.5e-5 * 512 / 768,
        weight_decay=0.05,
        drop_path_rate=0.1,
        random_erasing=0.1,
        repeated_augmentation=3,
    )


QUICKSTART = Recipe(
    data="digits",
    variant=None,
    image_size=28,
    patch_size=4,
    embed_dim=96,
    depth=2,
    num_heads=4,
    class_attention_depth=4,
    init_values=0.1,
    drop_path_rate=0.0,
    epochs=36,
    global_batch_size=16,
    learning_rate=25e-3,
    warmup_epochs=2.0,
    clip_norm=1.0,
    ema_momentum=0.99,
    ema_warmup=True,
    augmentation="affine",
    repeated_augmentation=1,
    mixing_batch_size=1,
    precision="float32",
    evaluation_epochs=3,
)

# A low learning rate for lower layers keeps what the model has learned. Small
# batches make enough steps of a few hundred images, and divide among 8 devices.
FINETUNE = Recipe(
    data="folder:",
    weights="imagenet",
    epochs=30,
    global_batch_size=16,
    learning_rate=8e-3,
    warmup_epochs=3.0,
    layer_decay=0.75,
    ema_momentum=0.99,
    ema_warmup=True,
    clip_norm=1.0,
    repeated_augmentation=1,
    random_erasing=0.0,
    mixing_batch_size=2,
    precision="auto",
)


FROM_SCRATCH = {
    f"{variant.lower()}-224": Recipe(variant=variant)
    for variant in get_args(Variant)
}
LARGER = {
    f"{variant.lower()}-384": at_resolution(Recipe(variant=variant), 384)
    for variant in get_args(Variant)
    if variant != "M48"
} | {
    "m48-448": at_resolution(
        Recipe(variant="M48"),
        448,
        epochs=60,
        global_batch_size=256,
        mixing_batch_size=32,
        weight_decay=0.05,
        drop_path_rate=0.3,
    )
}
DISTILLED = {
    f"{name}-distilled": distilled(recipe)
    for name, recipe in (FROM_SCRATCH | LARGER).items()
}
GROUPS = {
    "Start here": {"quickstart": QUICKSTART, "finetune": FINETUNE},
    "ImageNet at 224 pixels, from scratch": FROM_SCRATCH,
    "ImageNet at a larger size, from a model at 224 pixels": LARGER,
    "ImageNet with hard distillation, from --teacher": DISTILLED,
    "Transfer of the published S24": {
        "cifar10": transfer("cifar10"),
        "cifar100": transfer("cifar100"),
        "flowers102": transfer("oxford_flowers102"),
        "cars": transfer("cars196"),
        "inaturalist2018": inaturalist("i_naturalist2018"),
        "inaturalist2019": inaturalist("folder:"),
    },
}
RECIPES = {
    name: recipe for group in GROUPS.values() for name, recipe in group.items()
}


class Figures(NamedTuple):
    """What is known of the training of a variant on ImageNet.

    Attributes:
        parameters: millions.
        hours: from scratch at 224 pixels, and of fine-tuning at the larger
            size, by arithmetic (`docs/training.md`).
        top1: percent, from scratch at 224 pixels (`docs/training.md`).
        distilled_top1: percent of the published models, at 224 pixels and at
            the larger size.
    """

    parameters: int
    hours: tuple[float, float]
    top1: float | None
    distilled_top1: tuple[float | None, float | None]


FIGURES = {
    "XXS24": Figures(12, (2, 0.6), 77.6, (78.4, 81.0)),
    "XXS36": Figures(17, (3, 0.9), None, (79.8, 82.2)),
    "XS24": Figures(27, (5, 1.2), 81.8, (None, 84.1)),
    "XS36": Figures(39, (7, 1.8), 82.6, (None, None)),
    "S24": Figures(47, (8, 2.1), 82.7, (83.5, 85.1)),
    "S36": Figures(68, (12, 3.1), 83.3, (None, 85.4)),
    "S48": Figures(89, (16, 4.1), None, (None, None)),
    "M24": Figures(186, (31, 7.4), 83.4, (None, None)),
    "M36": Figures(271, (46, 11), None, (None, 86.1)),
    "M48": Figures(356, (61, 42), None, (None, 86.5)),
}
# Hours are those of eight A100 at 40 % of their bfloat16 peak, by arithmetic.
SUMMARIES = {
    "quickstart": "digits, 0.7M parameters, 7 min on 2 CPU cores, 96.2 % top-1",
    "finetune": "published S24 on your images: --data folder:PATH",
    "cifar10": "47M parameters, 0.8 h on 8 A100; the paper's M36: 99.4 %",
    "cifar100": "47M parameters, 0.8 h on 8 A100; the paper's M36: 93.1 %",
    "flowers102": "47M parameters, 1 min on 8 A100",
    "cars": "47M parameters, 8 min on 8 A100; the paper's M36: 94.2 %",
    "inaturalist2018": "47M parameters, 2.5 h on 8 A100",
    "inaturalist2019": "47M parameters, 1.5 h on 8 A100; --data folder:PATH",
}


def summary(name: str) -> str:
    """What a recipe takes and reaches, in one line.

    Example:
    >>> summary("xxs24-224")
    '12M parameters, 2 h on 8 A100, 77.6 % top-1'
    """
    recipe = RECIPES[name]
    if name in SUMMARIES or recipe.variant is None:
        return SUMMARIES[name]
    figures = FIGURES[recipe.variant]
    is_larger = recipe.image_size > 224
    text = (
        f"{figures.parameters}M parameters, "
        f"{figures.hours[is_larger]} h on 8 A100"
    )
    top1 = None if is_larger else figures.top1
    if recipe.distillation != "none":
        text += " + teacher"
        top1 = figures.distilled_top1[is_larger]
    return f"{text}, {top1} % top-1" if top1 else text
