"""Optimizers, the learning-rate schedule, and which weights learn and decay."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import keras
from keras import ops

from training.recipes import Recipe


class WarmupCosine(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up, then a cosine over all epochs, by step.

    The reference updates the rate once per epoch, after it, so its first two
    epochs share one rate. Here the rate changes at every step and meets the
    reference at the ends of the epochs.

    Args:
        peak: rate of the cosine at epoch 0, which warm-up hides.
        floor: rate at the end, and after it.
        start: rate at the first step.
        epochs: length of the cosine.
        warmup_epochs: length of the warm-up.
        steps_per_epoch: optimizer steps per epoch.

    Example:
    >>> rate = WarmupCosine(1e-3, 1e-5, 1e-6, 400, 5, 10)
    >>> [round(float(rate(step)), 6) for step in (0, 50, 4000)]
    [1e-06, 0.001, 1e-05]

    Reference: timm's cosine schedule with `t_in_epochs`, which DeiT uses.
    """

    def __init__(
        self,
        peak: float,
        floor: float,
        start: float,
        epochs: int,
        warmup_epochs: float,
        steps_per_epoch: int,
    ):
        self.peak = peak
        self.floor = floor
        self.start = start
        self.epochs = epochs
        self.warmup_epochs = warmup_epochs
        self.steps_per_epoch = steps_per_epoch

    def __call__(self, step: Any) -> Any:
        epoch = ops.cast(step, "float32") / self.steps_per_epoch
        share = ops.minimum(epoch / self.epochs, 1.0)
        cosine = 0.5 * (1.0 + ops.cos(math.pi * share))
        rate = self.floor + (self.peak - self.floor) * cosine
        if self.warmup_epochs == 0:
            return rate
        slope = (self.peak - self.start) / self.warmup_epochs
        return ops.where(
            epoch < self.warmup_epochs, self.start + slope * epoch, rate
        )

    def get_config(self) -> dict[str, Any]:
        return dict(vars(self))


class SummedGradients(keras.optimizers.Optimizer):
    """Mixin for gradients that are already summed over the replicas.

    Keras' own optimizers clip the gradient of each replica and sum afterwards,
    which is another gradient. Weight decay and learning rate can differ by
    variable.
    """

    def _all_reduce_sum_gradients(self, grads_and_vars):
        return list(grads_and_vars)

    def arrange(
        self,
        variables: Sequence[keras.Variable],
        decays: Sequence[float],
        rate_factors: Sequence[float],
    ) -> None:
        """Builds the optimizer.

        Args:
            variables: the trainable variables.
            decays: one weight decay per variable.
            rate_factors: one learning-rate multiplier per variable.
        """
        self.decays, self.rate_factors = decays, rate_factors
        self.build(variables)

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        rate = learning_rate * self.rate_factors[index]
        if self.decays[index]:
            decay = ops.cast(rate * self.decays[index], variable.dtype)
            variable.assign_sub(decay * variable)
        super().update_step(gradient, variable, rate)


class Adam(keras.optimizers.Adam):
    """Adam as in its paper and in PyTorch.

    Keras adds epsilon before the bias correction, which makes it 30 times
    larger at first: too large for gammas, whose gradients are just as small.
    """

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        first, second = self._momentums[index], self._velocities[index]
        step = ops.cast(self.iterations + 1, variable.dtype)
        rate = ops.cast(learning_rate, variable.dtype)
        first.assign_add((1 - self.beta_1) * (gradient - first))
        second.assign_add((1 - self.beta_2) * (gradient * gradient - second))
        scale = ops.sqrt(second / (1 - self.beta_2**step)) + self.epsilon
        variable.assign_sub(rate / (1 - self.beta_1**step) * first / scale)


class AdamW(SummedGradients, Adam):
    """Adam with decoupled weight decay, for summed gradients."""


class SGD(SummedGradients, keras.optimizers.SGD):
    """SGD with decoupled weight decay, for summed gradients."""


def make_optimizer(
    recipe: Recipe, model: keras.Model, steps_per_epoch: int
) -> keras.optimizers.Optimizer:
    """The recipe's optimizer, built for a model's variables.

    Only kernels decay, as in the official code: gammas, biases, norms, class
    token and position embeddings never do. Gradients are clipped by their
    global norm.

    Args:
        recipe: the recipe.
        model: `CaiT` or `ViT`, with its frozen variables frozen already.
        steps_per_epoch: optimizer steps per epoch.

    Returns:
        A built `AdamW` or `SGD`. With `mixed_float16`, or where non-finite
        steps are skipped, it is inside a `LossScaleOptimizer`.
    """
    schedule = WarmupCosine(
        recipe.learning_rate * recipe.global_batch_size / 512,
        recipe.min_learning_rate,
        recipe.warmup_learning_rate,
        recipe.epochs,
        recipe.warmup_epochs,
        steps_per_epoch,
    )
    clip_norm = recipe.clip_norm or None
    if recipe.optimizer == "sgd":
        optimizer = SGD(schedule, momentum=0.9, global_clipnorm=clip_norm)
    else:
        optimizer = AdamW(schedule, epsilon=1e-8, global_clipnorm=clip_norm)
    variables = model.trainable_variables
    optimizer.arrange(
        variables,
        [recipe.weight_decay if decays(v) else 0.0 for v in variables],
        rate_factors(model, recipe.layer_decay),
    )
    if recipe.precision == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    elif recipe.on_nonfinite == "skip":
        # Never grows, so that it only skips.
        optimizer = keras.optimizers.LossScaleOptimizer(
            optimizer, initial_scale=1.0, dynamic_growth_steps=2**31 - 1
        )
    if not optimizer.built:
        optimizer.build(variables)
    return optimizer


def decays(variable: keras.Variable) -> bool:
    """Whether weight decay applies to a variable: only to kernels."""
    return variable.path.endswith("/kernel")


def rate_factors(model: keras.Model, layer_decay: float) -> list[float]:
    """The learning rate of each trainable variable over that of the head.

    Args:
        model: `CaiT` or `ViT`.
        layer_decay: rate of a layer over that of the next one, in (0, 1].

    Example:
    >>> factors = rate_factors(CaiT(48, 3, 1, input_shape=(32, 32, 3)), 0.5)
    >>> factors[0], factors[-1]
    (0.03125, 1.0)
    """
    variables = model.trainable_variables
    if layer_decay == 1.0:
        return [1.0] * len(variables)
    blocks = model.self_attention_blocks
    below_head = {"head": 0}
    for index, block in enumerate(blocks):
        below_head[block.name] = len(blocks) + 1 - index
    for name in ("patch_embedding", "position_embedding"):
        below_head[name] = len(blocks) + 2
    layers = [variable.path.split("/")[0] for variable in variables]
    return [layer_decay ** below_head.get(name, 1) for name in layers]


def freeze(
    model: keras.Model, trainable: Literal["all", "attention", "head"]
) -> None:
    """Freezes all weights of a model except those that learn.

    Args:
        model: `CaiT`, which is changed in place.
        trainable: what learns: `"all"`; `"attention"`, the attention layers
            and the head (Touvron et al., 2022, arXiv 2203.09795); or `"head"`.
    """
    for variable in model.weights:
        parts = variable.path.split("/")
        variable.trainable = {
            "all": True,
            "attention": parts[0] == "head" or "attention" in parts,
            "head": parts[0] == "head",
        }[trainable]
