"""The optimizer of a recipe: AdamW, warm-up and cosine, decay of kernels."""

import keras


def learning_rate_schedule(recipe, steps_per_epoch):
    """Linear warm-up, then a cosine, as a function of the step.

    Args:
        recipe: `Recipe`.
        steps_per_epoch: int. Optimizer steps of an epoch.

    Returns:
        A `keras.optimizers.schedules.LearningRateSchedule`.
    """
    peak = recipe.learning_rate * recipe.global_batch_size / 512
    warmup_steps = round(recipe.warmup_epochs * steps_per_epoch)
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0,
        warmup_target=peak,
        warmup_steps=warmup_steps,
        decay_steps=recipe.epochs * steps_per_epoch - warmup_steps,
        alpha=recipe.min_learning_rate / peak,
    )


def adamw(recipe, variables, steps_per_epoch):
    """AdamW that decays kernels alone, with the gradient clipped by its norm.

    Gammas, biases, norms, class token and positions never decay, as in the
    official code.

    Args:
        recipe: `Recipe`.
        variables: list of the model's trainable variables.
        steps_per_epoch: int. Optimizer steps of an epoch.

    Returns:
        A built `keras.optimizers.AdamW`.
    """
    optimizer = keras.optimizers.AdamW(
        learning_rate_schedule(recipe, steps_per_epoch),
        weight_decay=recipe.weight_decay,
        global_clipnorm=recipe.clip_norm,
    )
    optimizer.exclude_from_weight_decay(
        var_list=[v for v in variables if not decays(v)]
    )
    optimizer.build(variables)
    return optimizer


def decays(variable):
    """Whether weight decay applies to a variable: to kernels alone."""
    return variable.path.endswith("/kernel")
