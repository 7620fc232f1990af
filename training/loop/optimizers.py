"""The optimizer of a recipe."""

from typing import Any

import keras

from keras_cait import optimizers
from training.recipe import Recipe


class SummedGradients(optimizers.Optimizer):
    """Mixin for gradients that the trainer has summed over the replicas."""

    def _summed(self, gradients: list[Any]) -> list[Any]:
        return gradients


class AdamW(SummedGradients, optimizers.AdamW):
    """AdamW for summed gradients."""


class SGD(SummedGradients, optimizers.SGD):
    """SGD for summed gradients."""


def make_optimizer(
    recipe: Recipe, model: keras.Model, steps_per_epoch: int
) -> keras.optimizers.Optimizer:
    """The recipe's optimizer, built for a model's variables.

    Args:
        recipe: the recipe.
        model: `CaiT` or `ViT`, with its frozen variables frozen already.
        steps_per_epoch: optimizer steps per epoch.

    Returns:
        A built `AdamW` or `SGD`. With `mixed_float16`, or where non-finite
        steps are skipped, it is inside a `LossScaleOptimizer`.
    """
    schedule = optimizers.WarmupCosine(
        recipe.learning_rate * recipe.global_batch_size / 512,
        recipe.epochs * steps_per_epoch,
        recipe.warmup_epochs * steps_per_epoch,
        recipe.warmup_learning_rate,
        recipe.min_learning_rate,
    )
    kind = SGD if recipe.optimizer == "sgd" else AdamW
    optimizer: keras.optimizers.Optimizer = kind(
        schedule,
        weight_decay=recipe.weight_decay,
        layer_decay=recipe.layer_decay,
        global_clipnorm=recipe.clip_norm or None,
    )
    if recipe.precision == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    elif recipe.on_nonfinite == "skip":
        # Never grows, so that it only skips.
        optimizer = keras.optimizers.LossScaleOptimizer(
            optimizer, initial_scale=1.0, dynamic_growth_steps=2**31 - 1
        )
    optimizer.build(model.trainable_variables)
    return optimizer
