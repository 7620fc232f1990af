"""Mixing, softmax and mixing of attention scores in one GPU kernel, for JAX.

Between `Q K^T` and the product with `V`, talking-heads attention is a function
of one row of scores: of all heads and keys of one query. XLA reads and writes
the scores five times for it. Here a program holds whole rows in registers, so
the scores are read once and written once, and nothing in between is rounded.
The backward pass reads scores and gradients once, recomputes the rest, and
writes the gradient of the scores once.

The kernels are Pallas kernels, which JAX compiles by Triton.
"""

import functools
import math
from typing import Any

import jax
import keras
import numpy as np
from jax import lax
from jax import numpy as jnp

try:
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton as plgpu
except ImportError:  # JAX without Triton
    pl = plgpu = None

# More heads do not fit into registers, nor do longer rows into one program.
MAX_HEADS = 8
MAX_KEYS = 2048
# Scores of one head per thread. A warp has 32 threads.
PER_THREAD = 8
# Rows of scores per program of the backward pass, which sums over them.
BACKWARD_ROWS = 14
LOG2_E = math.log2(math.e)
LOWEST = -1e30

Array = Any


def applies(scores: Array) -> bool:
    """Whether the kernel computes the mixing of these scores.

    It does on one CUDA GPU of compute capability 8 or later, in bfloat16 and
    float16, for the heads and keys that fit into registers.

    Args:
        scores: array `(heads, batch, queries, keys)`.
    """
    heads, *sizes = scores.shape
    return (
        plgpu is not None
        and heads <= MAX_HEADS
        and all(isinstance(size, int) for size in sizes)
        and sizes[-1] <= MAX_KEYS
        and scores.dtype in (jnp.bfloat16, jnp.float16)
        and keras.distribution.distribution() is None
        and _has_gpu()
    )


@functools.cache
def _has_gpu() -> bool:
    capability = getattr(jax.devices()[0], "compute_capability", "0")
    return jax.default_backend() == "gpu" and float(capability) >= 8


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def mix(
    scores: Array,
    logits_kernel: Array,
    weights_kernel: Array,
    weights_bias: Array,
    interpret: bool = False,
) -> Array:
    """`P_w softmax(P_l scores)`, where both P act across the heads.

    The bias of `P_l` is missing: a constant added to all scores of a query
    cancels in the softmax, and its gradient is zero.

    Args:
        scores: float array `(heads, batch, queries, keys)`.
        logits_kernel: array `(heads, heads)`, the kernel of `P_l`.
        weights_kernel: array `(heads, heads)`, the kernel of `P_w`.
        weights_bias: array `(heads,)`, the bias of `P_w`.
        interpret: whether Pallas interprets the kernel, which works anywhere.

    Returns:
        Array like `scores`. Sums and the softmax are in float32.
    """
    return _forward(
        scores, logits_kernel, weights_kernel, weights_bias, interpret
    )[0]


def reference(
    scores: Array,
    logits_kernel: Array,
    weights_kernel: Array,
    weights_bias: Array,
) -> Array:
    """`mix` without a kernel, where the program runs on another device."""

    def across_heads(x: Array, kernel: Array) -> Array:
        return jnp.einsum("hbqk,hg->gbqk", x, kernel.astype(jnp.float32))

    logits = across_heads(scores.astype(jnp.float32), logits_kernel)
    weights = across_heads(jax.nn.softmax(logits), weights_kernel)
    weights += weights_bias.astype(jnp.float32)[:, None, None, None]
    return weights.astype(scores.dtype)


def _forward(scores, logits_kernel, weights_kernel, weights_bias, interpret):
    arguments = (scores, logits_kernel, weights_kernel, weights_bias)
    if interpret:
        weights = _forward_call(*arguments, interpret=True)
    else:
        weights = lax.platform_dependent(
            *arguments, cuda=_forward_call, default=reference
        )
    return weights, arguments


def _backward(interpret, arguments, gradient):
    if interpret:
        return _backward_call(*arguments, gradient, interpret=True)

    def without_kernel(*arguments):
        *inputs, gradient = arguments
        return jax.vjp(reference, *inputs)[1](gradient)

    return lax.platform_dependent(
        *arguments, gradient, cuda=_backward_call, default=without_kernel
    )


mix.defvjp(_forward, _backward)


class _Tiling:
    """How rows of scores are divided among programs and threads."""

    def __init__(self, shape: tuple[int, ...], rows_per_program: int):
        self.heads, batch, queries, self.keys = shape
        self.rows = batch * queries
        self.width = max(16, 1 << (self.keys - 1).bit_length())
        # One warp for a row of up to 256 keys: it reduces without barriers.
        self.warps = max(1, self.width // (32 * PER_THREAD))
        self.tile_rows = max(1, 32 * PER_THREAD // self.width)
        self.tiles = max(1, rows_per_program // self.tile_rows)
        self.programs = pl.cdiv(self.rows, self.tile_rows * self.tiles)

    @property
    def scores(self) -> Any:
        """The scores `(heads, rows, keys)` of one program."""
        block = (self.heads, self.tile_rows * self.tiles, self.width)
        return pl.BlockSpec(block, lambda i: (0, i, 0))

    def call(self, kernel: Any, out_shape: Any, interpret: bool, **specs: Any):
        return pl.pallas_call(
            functools.partial(kernel, self),
            out_shape=out_shape,
            grid=(self.programs,),
            compiler_params=plgpu.CompilerParams(
                num_warps=self.warps, num_stages=1
            ),
            interpret=interpret,
            **specs,
        )


def _whole(array: Array) -> Any:
    return pl.BlockSpec(array.shape, lambda i: (0,) * array.ndim)


def _forward_call(scores, *weights, interpret=False):
    tiling = _Tiling(scores.shape, 1)
    rows = scores.reshape(tiling.heads, tiling.rows, tiling.keys)
    mixed = tiling.call(
        _forward_kernel,
        jax.ShapeDtypeStruct(rows.shape, rows.dtype),
        interpret,
        in_specs=[tiling.scores, *map(_whole, weights)],
        out_specs=tiling.scores,
    )(rows, *weights)
    return mixed.reshape(scores.shape)


def _backward_call(
    scores,
    logits_kernel,
    weights_kernel,
    weights_bias,
    gradient,
    interpret=False,
):
    tiling = _Tiling(scores.shape, BACKWARD_ROWS)
    heads, size = tiling.heads, _padded_heads(tiling.heads)
    shape = (heads, tiling.rows, tiling.keys)
    by_scores, products, sums = tiling.call(
        _backward_kernel,
        [
            jax.ShapeDtypeStruct(shape, scores.dtype),
            jax.ShapeDtypeStruct(
                (tiling.programs, 2 * size, 2 * size), jnp.float32
            ),
            jax.ShapeDtypeStruct((tiling.programs, 16, 2 * size), jnp.float32),
        ],
        interpret,
        in_specs=[
            tiling.scores,
            tiling.scores,
            _whole(logits_kernel),
            _whole(weights_kernel),
        ],
        out_specs=[
            tiling.scores,
            pl.BlockSpec((None, 2 * size, 2 * size), lambda i: (i, 0, 0)),
            pl.BlockSpec((None, 16, 2 * size), lambda i: (i, 0, 0)),
        ],
    )(scores.reshape(shape), gradient.reshape(shape), logits_kernel, weights_kernel)
    # In a fixed order, not by atomics: the same sum every time.
    products, sums = jnp.sum(products, 0), jnp.sum(sums, 0)
    return (
        by_scores.reshape(scores.shape),
        products[size : size + heads, size : size + heads].astype(
            logits_kernel.dtype
        ),
        products[:heads, :heads].astype(weights_kernel.dtype),
        sums[0, :heads].astype(weights_bias.dtype),
    )


def _forward_kernel(tiling, scores_ref, logits_ref, weights_ref, bias_ref, ref):
    rows = pl.program_id(0) * tiling.tile_rows + jnp.arange(tiling.tile_rows)
    tile = _Tile(tiling, 0, rows)
    probabilities = tile.probabilities(tile.load(scores_ref), logits_ref)
    bias = [bias_ref[h].astype(jnp.float32) for h in range(tiling.heads)]
    tile.store(ref, _across_heads(probabilities, weights_ref, bias))


def _backward_kernel(
    tiling,
    scores_ref,
    gradient_ref,
    logits_ref,
    weights_ref,
    by_scores_ref,
    products_ref,
    sums_ref,
):
    first = pl.program_id(0) * tiling.tile_rows * tiling.tiles
    size = _padded_heads(tiling.heads)
    dtype = scores_ref.dtype
    ones = jnp.ones((16, tiling.tile_rows * tiling.width), dtype)

    def add_tile(index, totals):
        products, sums = totals
        start = index * tiling.tile_rows
        tile = _Tile(
            tiling, start, first + start + jnp.arange(tiling.tile_rows)
        )
        scores, gradient = tile.load(scores_ref), tile.load(gradient_ref)
        probabilities = tile.probabilities(scores, logits_ref)
        by_probabilities = _across_heads(
            gradient, weights_ref, transposed=True
        )
        by_logits = []
        for p, by_p in zip(probabilities, by_probabilities, strict=True):
            by_p = p * by_p
            by_logits.append(by_p - p * jnp.sum(by_p, axis=1)[:, None])
        tile.store(
            by_scores_ref, _across_heads(by_logits, logits_ref, transposed=True)
        )
        # The products of all pairs of heads, summed over the tile, on the
        # tensor cores. Two of the four blocks are the kernels' gradients.
        left = _stack(probabilities, scores, size=size, dtype=dtype)
        right = _stack(gradient, by_logits, size=size, dtype=dtype)
        return products + _dot(left.T, right), sums + _dot(ones, right)

    products_ref[...], sums_ref[...] = lax.fori_loop(
        0,
        tiling.tiles,
        add_tile,
        (
            jnp.zeros((2 * size, 2 * size), jnp.float32),
            jnp.zeros((16, 2 * size), jnp.float32),
        ),
    )


class _Tile:
    """Rows of scores that a program works on at one time.

    Args:
        tiling: the tiling.
        start: first row within the program's block.
        rows: numbers of the rows among all rows.
    """

    def __init__(self, tiling: _Tiling, start: Any, rows: Array):
        self.tiling = tiling
        self.start = start
        keys = jnp.arange(tiling.width)
        self.is_key = (keys < tiling.keys)[None]
        self.valid = (rows < tiling.rows)[:, None] & self.is_key

    def part(self, ref: Any, head: int) -> Any:
        return ref.at[np.int32(head), pl.ds(self.start, self.tiling.tile_rows)]

    def load(self, ref: Any) -> list[Array]:
        """One float32 array `(rows, keys)` for each head."""
        return [
            plgpu.load(self.part(ref, h), mask=self.valid, other=0.0).astype(
                jnp.float32
            )
            for h in range(self.tiling.heads)
        ]

    def store(self, ref: Any, values: list[Array]) -> None:
        for h, value in enumerate(values):
            plgpu.store(
                self.part(ref, h), value.astype(ref.dtype), mask=self.valid
            )

    def probabilities(
        self, scores: list[Array], logits_ref: Any
    ) -> list[Array]:
        """The softmax of the mixed scores. Beyond the last key it is 0."""
        found = []
        for x in _across_heads(scores, logits_ref):
            x = jnp.where(self.is_key, x, LOWEST)
            highest = jnp.max(x, axis=1) * LOG2_E
            x = jnp.exp2(x * LOG2_E - highest[:, None])
            found.append(x * (1.0 / jnp.sum(x, axis=1))[:, None])
        return found


def _across_heads(
    arrays: list[Array],
    kernel_ref: Any,
    bias: list[Array] | None = None,
    transposed: bool = False,
) -> list[Array]:
    """Each output is a sum of all heads: multiply-adds on registers."""
    heads = range(len(arrays))
    outputs = []
    for g in heads:
        output = None if bias is None else bias[g]
        for h in heads:
            weight = kernel_ref[(g, h) if transposed else (h, g)]
            term = arrays[h] * weight.astype(jnp.float32)
            output = term if output is None else output + term
        outputs.append(output)
    return outputs


def _padded_heads(heads: int) -> int:
    """A power of 2, and at least 8: the tensor cores take 16 x 16."""
    return max(8, 1 << (heads - 1).bit_length())


def _stack(*groups: list[Array], size: int, dtype: Any) -> Array:
    """Heads as columns: `(elements, groups * size)`."""
    zero = jnp.zeros(groups[0][0].shape, dtype)
    columns = []
    for group in groups:
        columns += [x.astype(dtype) for x in group]
        columns += [zero] * (size - len(group))
    return _interleave(columns).reshape(-1, len(columns))


def _interleave(arrays: list[Array]) -> Array:
    """Stacks along new last axes of size 2, all that Triton can do."""
    if len(arrays) == 1:
        return arrays[0]
    halves = [_interleave(arrays[0::2]), _interleave(arrays[1::2])]
    return jnp.stack(halves, axis=-1)


def _dot(x: Array, y: Array) -> Array:
    return jnp.dot(
        x,
        y,
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
