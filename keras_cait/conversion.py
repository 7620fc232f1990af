"""Converts between our weights and reference tensors, by name.

Reference tensors have the names of timm's `cait.py` and of the official
`cait_models.py`, and PyTorch's layouts: dense kernels `(out, in)`, convolution
kernels `(out, in, height, width)`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

LAYERS = re.compile(
    r"(patch|position)_embedding|class_token|norm|head"
    r"|(self|class)_attention_block_\d+"
)
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


def layer_of(path: str) -> str | None:
    """The layer of `CaiT` or `ViT` that has a weight; `None` if another has it.

    Args:
        path: `path` of a Keras variable, also of a model in a name scope.

    Example:
    >>> layer_of("student/head/kernel"), layer_of("dense/kernel")
    ('head', None)
    """
    *layers, _ = path.split("/")
    return next(filter(LAYERS.fullmatch, layers), None)


def reference_name(path: str) -> str:
    """Returns the reference name of one of our weights.

    Args:
        path: `path` of a Keras variable of a `CaiT`.

    Example:
    >>> reference_name("self_attention_block_3/attention/qkv/kernel")
    'blocks.3.attn.qkv.weight'
    >>> reference_name("class_attention_block_0/layer_scale_2/gamma")
    'blocks_token_only.0.gamma_2'
    """
    *layers, weight = path.split("/")
    if layer := layer_of(path):  # without name scopes around the model
        layers = layers[layers.index(layer) :]
    if layers[-1] == weight:  # class token and positions
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


def to_reference(variables: Iterable[keras.Variable]) -> dict[str, np.ndarray]:
    """Converts our weights to reference tensors.

    Args:
        variables: Keras variables, such as `model.weights`.

    Returns:
        NumPy arrays by reference name, in PyTorch's layouts.

    Example:
    >>> model = CaiT(48, depth=1, num_heads=4, input_shape=(64, 96, 3))
    >>> to_reference(model.weights)["blocks.0.attn.qkv.weight"].shape
    (144, 48)
    """
    return {
        reference_name(v.path): np.ascontiguousarray(
            np.asarray(v).transpose(_axes(len(v.shape)))
        )
        for v in variables
        if not is_state(v)
    }


def from_reference(
    variables: Iterable[keras.Variable], tensors: Mapping[str, Any]
) -> None:
    """Fills our weights from reference tensors.

    All is checked first: either all weights change, or none.

    Args:
        variables: Keras variables, such as `model.weights`.
        tensors: reference tensors by name: NumPy arrays, or objects with a
            `shape` that `np.asarray` reads. One is read at a time, so they can
            stay in a file until then.

    Raises:
        ValueError: a tensor is missing, not needed, of another shape, or not
            finite.

    Example:
    >>> model = CaiT(48, depth=1, num_heads=4, input_shape=(64, 96, 3))
    >>> tensors = to_reference(model.weights)
    >>> from_reference(model.weights, tensors)
    """
    wanted = {reference_name(v.path): v for v in variables if not is_state(v)}
    missing = sorted(wanted.keys() - tensors.keys())
    unknown = sorted(tensors.keys() - wanted.keys())
    if missing or unknown:
        raise ValueError(
            "The tensors do not belong to this model. Missing: "
            f"{listed(missing)}. Not in the model: {listed(unknown)}. Build "
            "the model with the variant, depth, pooling and head of the "
            "tensors."
        )
    misfits = [
        f"{name} is {tuple(tensors[name].shape)}, expected {shape}"
        for name, variable in wanted.items()
        if (shape := _reference_shape(variable)) != tuple(tensors[name].shape)
    ]
    if misfits:
        raise ValueError(
            "The tensors belong to a model of another size: "
            f"{listed(misfits, '; ')}. Build the model with the sizes of the "
            "tensors; for other classes, with include_top=False and a head of "
            "your own."
        )

    for name, variable in wanted.items():
        if not is_finite(tensors[name]):
            raise ValueError(
                f"The weight {variable.path} is not finite: the file is "
                "damaged, or its training diverged."
            )
    for name, variable in wanted.items():
        array = np.asarray(tensors[name])
        array = array.transpose(np.argsort(_axes(array.ndim)))
        # The backend copies a transposed array. JAX would keep any other one,
        # even if it is a view of a file that may change.
        variable.assign(array.copy() if array.flags.c_contiguous else array)


def is_finite(tensor: Any) -> bool:
    """Whether all values of a tensor are finite.

    Example:
    >>> is_finite(np.ones(3)), is_finite(np.array([np.inf, -np.inf]))
    (True, False)
    """
    # A sum is finite only if all its terms are, and needs no memory.
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(np.sum(np.asarray(tensor), dtype="float32")))


def is_state(variable: keras.Variable) -> bool:
    """Whether a variable is the state of a random generator."""
    return variable.path.endswith("seed_generator_state")


def listed(items: Sequence[str], separator: str = ", ") -> str:
    """The first eight items, as a part of a message.

    Example:
    >>> listed("abcdefghij", "")
    'abcdefgh... (10 in total)'
    """
    more = [f"... ({len(items)} in total)"] if len(items) > 8 else []
    return separator.join([*items[:8], *more]) or "none"


def _axes(rank: int) -> tuple[int, ...]:
    """(in, out) -> (out, in); (height, width, in, out) -> (out, in, h, w)."""
    return {2: (1, 0), 4: (3, 2, 0, 1)}.get(rank, tuple(range(rank)))


def _reference_shape(variable: keras.Variable) -> tuple[int, ...]:
    return tuple(variable.shape[axis] for axis in _axes(len(variable.shape)))
