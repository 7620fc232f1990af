"""Size and memory of a run, printed before it starts."""

from keras_cait.optimizers import decays
from training.data.datasets import Examples
from training.loop.trainer import Trainer
from training.recipe import Recipe


def print_overview(
    recipe: Recipe, trainer: Trainer, examples: Examples, steps_per_epoch: int
) -> None:
    """Prints the sizes of the model, the dataset, the batch and the memory."""
    parameters = trainer.model.count_params()
    sizes = {v.path: v.value.shape.num_elements() for v in trainer.variables}
    decayed = sum(sizes[v.path] for v in trainer.variables if decays(v))
    devices = trainer.strategy.num_replicas_in_sync
    batch, count = recipe.global_batch_size, recipe.accumulation_steps
    memory = estimated_memory(recipe, parameters, devices)
    print(
        f"{parameters:,} parameters, {sum(sizes.values()):,} of them trainable "
        f"and {decayed:,} with weight decay\n"
        f"{examples.count:,} images, {steps_per_epoch} steps of {batch} per "
        f"epoch, {recipe.epochs} epochs\n"
        f"Devices: {devices}, with {count} micro-batches of "
        f"{batch // devices // count} images each\n"
        f"About {max(memory / 1e9, 0.1):.1f} GB of memory per device"
    )


def estimated_memory(recipe: Recipe, parameters: int, devices: int) -> float:
    """A rough estimate of the bytes that training needs on each device.

    Weights, EMA weights, the gradient and the optimizer's moments in float32,
    and the activations of one micro-batch that the backward pass needs. XLA may
    need less.

    Args:
        recipe: the recipe.
        parameters: number of the model's parameters.
        devices: number of devices.

    Example:
    >>> from training.recipes import RECIPES
    >>> round(estimated_memory(RECIPES["xxs24-224"], 11_956_264, 8) / 1e9)
    8
    """
    sizes = recipe.resolved().architecture()
    width, depth = sizes["embed_dim"], sizes["depth"]
    moments = {"adamw": 2, "sgd": 1}[recipe.optimizer]
    sums = 1 if recipe.accumulation_steps > 1 else 0
    state = 4 * parameters * (3 + sums + moments)

    patches = (recipe.image_size // recipe.patch_size) ** 2
    # Per patch: two norms, qkv, attention, its projection, MLP (4 + 1) and
    # residuals; the scores before and after each mixing and the softmax.
    block = 14 * width + 4 * sizes["num_heads"] * patches
    kept = 1 if recipe.rematerialize else depth
    inputs = width * depth
    class_attention = 3 * width * sizes["class_attention_depth"]
    values = patches * (kept * block + inputs + class_attention)
    images = recipe.global_batch_size / devices / recipe.accumulation_steps
    size = 4 if recipe.precision == "float32" else 2
    return state + images * values * size
