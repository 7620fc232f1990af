"""Reference tensors to our weights and back, by name, with numpy alone.

The reference names are those of timm's `cait.py` and of Facebook's
`cait_models.py`, in PyTorch's layouts: dense kernels `(out, in)`, convolution
kernels `(out, in, height, width)`.
"""

import numpy as np

REFERENCE_WORDS = {
    "patch_embedding": "patch_embed",
    "position_embedding": "pos_embed",
    "class_token": "cls_token",
    "attention": "attn",
    "query": "q",
    "key": "k",
    "value": "v",
    "proj_logits": "proj_l",
    "proj_weights": "proj_w",
    "kernel": "weight",
    "beta": "bias",
}


def reference_name(path):
    """The reference name of one of our weights.

    Args:
        path: str, `path` of a Keras variable of a `CaiT`.

    Returns:
        str.

    Example:
    >>> reference_name("self_attention_block_3/attention/qkv/kernel")
    'blocks.3.attn.qkv.weight'
    >>> reference_name("class_attention_block_0/layer_scale_2/gamma")
    'blocks_token_only.0.gamma_2'
    """
    *layers, weight = path.split("/")
    if layers[-1] == weight:  # class token and positions are layers of one
        layers.pop()
    if weight == "gamma":
        is_scale = layers[-1].startswith("layer_scale_")
        weight = f"gamma_{layers.pop()[-1]}" if is_scale else "weight"
    words = [REFERENCE_WORDS.get(word, word) for word in (*layers, weight)]
    for ours, theirs in (
        ("self_attention_block_", "blocks."),
        ("class_attention_block_", "blocks_token_only."),
    ):
        words[0] = words[0].replace(ours, theirs)
    return ".".join(words)


def to_reference(variables):
    """Our weights under their reference names and in PyTorch's layouts.

    Args:
        variables: iterable of Keras variables, as `model.weights`.

    Returns:
        dict of str to numpy array.

    Example:
    >>> model = CaiT(48, depth=1, num_heads=4, input_shape=(64, 96, 3))
    >>> to_reference(model.weights)["blocks.0.attn.qkv.weight"].shape
    (144, 48)
    """
    return {
        reference_name(v.path): np.ascontiguousarray(
            _to_reference_layout(np.asarray(v))
        )
        for v in variables
        if not _is_state(v)
    }


def from_reference(variables, tensors):
    """Fills our weights from reference tensors.

    All names and shapes are checked first, so that either every weight is
    filled, or none.

    Args:
        variables: iterable of Keras variables, as `model.weights`.
        tensors: mapping of reference names to numpy arrays, or to whatever has
            a `shape` and can be read by `np.asarray`. Each is read once, when
            its weight is filled, so that they may stay in a file.

    Raises:
        ValueError: a tensor is missing, left over or of another shape.

    Example:
    >>> model = CaiT(48, depth=1, num_heads=4, input_shape=(64, 96, 3))
    >>> tensors = to_reference(model.weights)
    >>> from_reference(model.weights, tensors)
    """
    wanted = {reference_name(v.path): v for v in variables if not _is_state(v)}
    missing = sorted(wanted.keys() - tensors.keys())
    unknown = sorted(tensors.keys() - wanted.keys())
    if missing or unknown:
        raise ValueError(
            "The tensors are not those of this model. Missing: "
            f"{_listed(missing)}. Not in the model: {_listed(unknown)}. Build "
            "the variant, depth and head that the tensors were made for."
        )
    misfits = [
        f"{name} is {tuple(tensors[name].shape)}, expected {shape}"
        for name, variable in wanted.items()
        if (shape := _reference_shape(variable)) != tuple(tensors[name].shape)
    ]
    if misfits:
        raise ValueError(
            "The tensors are those of a model of another size: "
            f"{_listed(misfits, '; ')}. Build the model with the arguments "
            "that the tensors were made with."
        )

    for name, variable in wanted.items():
        array = _from_reference_layout(np.asarray(tensors[name]))
        # The backend transposes while it copies. What is in its order already
        # JAX would keep, even if it is a view of a file that may change.
        variable.assign(array.copy() if array.flags.c_contiguous else array)


def _is_state(variable):
    """Whether a variable is the state of a random generator, not a weight."""
    return variable.path.endswith("seed_generator_state")


def _listed(items, separator=", "):
    """The first few of a list that may have hundreds."""
    more = [f"... ({len(items)} in all)"] if len(items) > 8 else []
    return separator.join([*items[:8], *more]) or "none"


# Of the axes of kernels, by their number; other weights stay as they are.
TO_REFERENCE = {2: (1, 0), 4: (3, 2, 0, 1)}
FROM_REFERENCE = {2: (1, 0), 4: (2, 3, 1, 0)}


def _to_reference_layout(array):
    """(in, out) -> (out, in); (height, width, in, out) -> (out, in, h, w)."""
    return array.transpose(TO_REFERENCE.get(array.ndim, range(array.ndim)))


def _from_reference_layout(array):
    return array.transpose(FROM_REFERENCE.get(array.ndim, range(array.ndim)))


def _reference_shape(variable):
    shape = variable.shape
    return tuple(
        shape[axis] for axis in TO_REFERENCE.get(len(shape), range(len(shape)))
    )
