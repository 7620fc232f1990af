"""What a run will need of a device's memory, before it starts."""


def estimated_memory(recipe, parameters, devices):
    """Bytes that training needs on each device, roughly.

    Weights, their average, the gradient and the optimizer's moments in float32;
    and what the backward pass needs of the forward pass of one micro-batch. A
    compiler that fuses may need less.

    Args:
        recipe: `Recipe`.
        parameters: int. Number of the model's parameters.
        devices: int. Number of devices.

    Returns:
        float.

    Example:
    >>> from training.recipes import RECIPES
    >>> round(estimated_memory(RECIPES["xxs24-224"], 11_956_264, 8) / 1e9)
    8
    """
    moments = {"adamw": 2, "sgd": 1}[recipe.optimizer]
    sums = 1 if recipe.accumulation_steps > 1 else 0
    state = 4 * parameters * (3 + sums + moments)

    patches = (recipe.image_size // recipe.patch_size) ** 2
    # Per patch: two norms, qkv, attention, its projection, MLP (4 + 4 + 1) and
    # residuals; the scores before and after each mixing and the softmax.
    block = 18 * recipe.embed_dim + 4 * recipe.num_heads * patches
    kept = 1 if recipe.rematerialize else recipe.depth
    inputs = recipe.embed_dim * recipe.depth
    class_attention = 3 * recipe.embed_dim * recipe.class_attention_depth
    values = patches * (kept * block + inputs + class_attention)
    images = recipe.global_batch_size / devices / recipe.accumulation_steps
    size = 4 if recipe.precision == "float32" else 2
    return state + images * values * size
