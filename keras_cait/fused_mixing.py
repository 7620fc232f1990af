"""Mixing, softmax and mixing of attention scores in one GPU kernel, for JAX.

Between `Q K^T` and the product with `V`, talking-heads attention is a function
of the scores of all heads and keys of one query. A program holds those of a few
queries in registers, and mixes them on the tensor cores: it reads the scores
once and writes them once, where XLA does so for each step. The backward pass
recomputes the probabilities instead of keeping them.

The kernels are written in Pallas and compiled by Triton. Where JAX has no
Triton any more (0.11 announces this), the layer takes its usual path.
docs/benchmarks.md has the arithmetic and the measurements.
"""

import functools
import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import jax
import keras
from jax import lax
from jax import numpy as jnp

pl: Any = None
plgpu: Any = None
with suppress(ImportError):  # of a JAX without Triton
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton as plgpu

# Tensor cores multiply 16 x 16: the heads of one or more queries are columns.
COLUMNS = 16
# The keys of a tile share the registers of a warp of 32 threads. More warps
# work on longer rows; beyond 8 they get in each other's way.
FORWARD_KEYS_PER_WARP = 256
BACKWARD_KEYS_PER_WARP = 128
MAX_KEYS = 1024
# Tiles per program of the backward pass, which sums over them.
BACKWARD_TILES = 8
# A few small images wait for launches, and XLA launches its own kernels faster:
# the kernel costs more than it saves below 5 images of 224 pixels.
MIN_SCORES = 5 * 196**2
LOG2_E = math.log2(math.e)
LOWEST = -1e30

Array = Any


def applies(scores: Array) -> bool:
    """Whether the kernel computes the mixing of these scores.

    It does on a CUDA GPU of compute capability 8 or later, in bfloat16, except
    for a few small images. It does not under a `keras.distribution`, which
    could not divide it.

    Args:
        scores: array `(heads, batch, queries, keys)`.
    """
    heads, *sizes = scores.shape
    return (
        plgpu is not None
        and scores.dtype == jnp.bfloat16
        and heads <= COLUMNS
        and all(isinstance(size, int) for size in sizes)
        and sizes[-1] <= MAX_KEYS
        and math.prod(sizes) >= MIN_SCORES
        and keras.distribution.distribution() is None
        and _has_gpu()
    )


@functools.cache
def _has_gpu() -> bool:
    capability = getattr(jax.devices()[0], "compute_capability", "0")
    return jax.default_backend() == "gpu" and float(capability) >= 8


@jax.custom_vjp
def mix(
    scores: Array,
    logits_kernel: Array,
    weights_kernel: Array,
    weights_bias: Array,
) -> Array:
    """`P_w softmax(P_l scores)`, where both P act across the heads.

    The bias of `P_l` is missing: a constant added to all scores of a query
    cancels in the softmax, and its gradient is zero.

    Args:
        scores: float array `(heads, batch, queries, keys)`.
        logits_kernel: array `(heads, heads)`, the kernel of `P_l`.
        weights_kernel: array `(heads, heads)`, the kernel of `P_w`.
        weights_bias: array `(heads,)`, the bias of `P_w`.

    Returns:
        Array like `scores`. Sums and the softmax are in float32.
    """
    arguments = (scores, logits_kernel, weights_kernel, weights_bias)
    return _run(_forward_call, reference, arguments)


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


def _run(
    kernel: Callable[..., Any],
    otherwise: Callable[..., Any],
    arguments: tuple[Array, ...],
) -> Any:
    """Runs the kernel; or `otherwise`, where the program is not on a GPU."""
    return lax.platform_dependent(*arguments, cuda=kernel, default=otherwise)


def _forward(*arguments):
    return mix(*arguments), arguments


def _backward(arguments, gradient):
    def otherwise(*inputs):
        *inputs, gradient = inputs
        return jax.vjp(reference, *inputs)[1](gradient)

    return _run(_backward_call, otherwise, (*arguments, gradient))


mix.defvjp(_forward, _backward)


class _Tiling:
    """How scores are divided among programs.

    A tile has the scores of all heads and keys for as many queries as fill 16
    columns. A program works on one tile at a time. Triton wants powers of 2,
    so the keys are divided into such `parts`: 196 are 128, 64 and 4 of 16.

    Args:
        shape: `(heads, batch, queries, keys)`.
        tiles: tiles per program.
        keys_per_warp: keys of a tile per warp of 32 threads.
    """

    def __init__(self, shape: tuple[int, ...], tiles: int, keys_per_warp: int):
        self.heads, batch, queries, self.keys = shape
        self.shape = (self.heads, batch * queries, self.keys)
        self.padded_heads = 1 << (self.heads - 1).bit_length()
        self.queries = COLUMNS // self.padded_heads
        self.tiles = tiles
        width = 1 << (self.keys - 1).bit_length()
        self.warps = max(1, width // keys_per_warp)
        self.programs = pl.cdiv(self.shape[1], self.queries * tiles)
        blocks = pl.cdiv(self.keys, 16)
        sizes = [16 << i for i in range(blocks.bit_length()) if blocks >> i & 1]
        sizes.reverse()
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        self.parts = list(zip(starts, sizes, strict=True))

    def call(
        self,
        kernel: Any,
        inputs: tuple[Array, ...],
        outputs: list[Any],
        interpret: bool,
    ) -> Any:
        """Runs the kernel with all arrays whole, in all programs."""
        return pl.pallas_call(
            functools.partial(kernel, self),
            out_shape=outputs,
            grid=(self.programs,),
            compiler_params=plgpu.CompilerParams(
                num_warps=self.warps, num_stages=1
            ),
            interpret=interpret,
        )(*inputs)

    def heads_and_queries(self) -> tuple[Array, Array]:
        """Head and query, within the tile, of each column."""
        columns = jnp.arange(COLUMNS)
        return columns % self.padded_heads, columns // self.padded_heads

    def matrix(self, ref: Any, transposed: bool = False) -> Array:
        """The kernel `(heads, heads)` once for each query on the diagonal."""
        heads, queries = self.heads_and_queries()
        heads, queries = _grid(heads), _grid(queries)
        exists = (queries[0] == queries[1]) & (heads[0] < self.heads)
        exists &= heads[1] < self.heads
        index = heads[::-1] if transposed else heads
        return plgpu.load(ref.at[index], mask=exists, other=0.0)


class _Tile:
    """The scores `(columns, keys)` of one tile, where they are in memory."""

    def __init__(self, tiling: _Tiling, number: Any):
        self.tiling = tiling
        self.heads, queries = tiling.heads_and_queries()
        self.rows = number * tiling.queries + queries
        self.exists = self.heads < tiling.heads
        self.exists &= self.rows < tiling.shape[1]

    def _at(self, ref: Any, start: int, size: int) -> tuple[Any, Array]:
        shape = (COLUMNS, size)
        keys = start + jnp.arange(size)
        index = (
            jnp.broadcast_to(self.heads[:, None], shape),
            jnp.broadcast_to(self.rows[:, None], shape),
            jnp.broadcast_to(keys[None], shape),
        )
        mask = self.exists[:, None] & (keys < self.tiling.keys)[None]
        return ref.at[index], mask

    def load(self, ref: Any) -> list[Array]:
        """An array `(columns, keys)` for each part of the keys."""
        loaded = []
        for part in self.tiling.parts:
            view, mask = self._at(ref, *part)
            loaded.append(plgpu.load(view, mask=mask, other=0.0))
        return loaded

    def store(self, ref: Any, arrays: list[Array]) -> None:
        for part, array in zip(self.tiling.parts, arrays, strict=True):
            view, mask = self._at(ref, *part)
            plgpu.store(view, array.astype(ref.dtype), mask=mask)

    def probabilities(
        self, scores: list[Array], logits_kernel: Array
    ) -> list[Array]:
        """The softmax of the mixed scores, in float32: `(keys, columns)`."""
        logits = []
        for (start, size), x in zip(self.tiling.parts, scores, strict=True):
            x = _dot(x.T, logits_kernel)
            if start + size > self.tiling.keys:
                keys = start + jnp.arange(size)
                x = jnp.where((keys < self.tiling.keys)[:, None], x, LOWEST)
            logits.append(x)
        highest = _over_parts(jnp.maximum, jnp.max, logits) * LOG2_E
        powers = [jnp.exp2(x * LOG2_E - highest[None]) for x in logits]
        share = 1.0 / _over_parts(jnp.add, jnp.sum, powers)
        return [x * share[None] for x in powers]


def _forward_call(scores, *weights, interpret=False):
    tiling = _Tiling(scores.shape, 1, FORWARD_KEYS_PER_WARP)
    (mixed,) = tiling.call(
        _forward_kernel,
        (scores.reshape(tiling.shape), *weights),
        [jax.ShapeDtypeStruct(tiling.shape, scores.dtype)],
        interpret,
    )
    return mixed.reshape(scores.shape)


def _forward_kernel(
    tiling, scores_ref, logits_ref, weights_ref, bias_ref, mixed_ref
):
    tile = _Tile(tiling, pl.program_id(0))
    probabilities = tile.probabilities(
        tile.load(scores_ref), tiling.matrix(logits_ref)
    )
    weights_kernel = tiling.matrix(weights_ref)
    heads, _ = tiling.heads_and_queries()
    bias = plgpu.load(
        bias_ref.at[heads], mask=heads < tiling.heads, other=0.0
    ).astype(jnp.float32)
    tile.store(
        mixed_ref,
        [
            (_dot(p.astype(scores_ref.dtype), weights_kernel) + bias[None]).T
            for p in probabilities
        ],
    )


def _backward_call(
    scores,
    logits_kernel,
    weights_kernel,
    weights_bias,
    gradient,
    interpret=False,
):
    tiling = _Tiling(scores.shape, BACKWARD_TILES, BACKWARD_KEYS_PER_WARP)
    square = jax.ShapeDtypeStruct(
        (tiling.programs, COLUMNS, COLUMNS), jnp.float32
    )
    by_scores, *sums = tiling.call(
        _backward_kernel,
        (
            scores.reshape(tiling.shape),
            gradient.reshape(tiling.shape),
            logits_kernel,
            weights_kernel,
        ),
        [
            jax.ShapeDtypeStruct(tiling.shape, scores.dtype),
            square,
            square,
            jax.ShapeDtypeStruct((tiling.programs, COLUMNS), jnp.float32),
        ],
        interpret,
    )
    # In a fixed order, not by atomics: the same sum every time.
    by_logits_kernel, by_weights_kernel, by_bias = (jnp.sum(x, 0) for x in sums)
    heads, queries = tiling.heads, tiling.queries

    def of_heads(square: Array) -> Array:
        split = square.reshape(queries, -1, queries, tiling.padded_heads)
        return jnp.einsum("qhqg->hg", split)[:heads, :heads]

    by_bias = jnp.sum(by_bias.reshape(queries, -1), 0)[:heads]
    return (
        by_scores.reshape(scores.shape),
        of_heads(by_logits_kernel).astype(logits_kernel.dtype),
        of_heads(by_weights_kernel).astype(weights_kernel.dtype),
        by_bias.astype(weights_bias.dtype),
    )


def _backward_kernel(
    tiling,
    scores_ref,
    gradient_ref,
    logits_ref,
    weights_ref,
    by_scores_ref,
    by_logits_kernel_ref,
    by_weights_kernel_ref,
    by_bias_ref,
):
    program = pl.program_id(0)
    dtype = scores_ref.dtype
    logits_kernel = tiling.matrix(logits_ref)
    logits_kernel_t = tiling.matrix(logits_ref, transposed=True)
    weights_kernel_t = tiling.matrix(weights_ref, transposed=True)

    def add_tile(index, sums):
        by_logits_kernel, by_weights_kernel, by_bias = sums
        tile = _Tile(tiling, program * tiling.tiles + index)
        probabilities = tile.probabilities(tile.load(scores_ref), logits_kernel)
        products = []
        for p, g in zip(probabilities, tile.load(gradient_ref), strict=True):
            by_weights_kernel += _dot(p.astype(dtype).T, g.T)
            by_bias += jnp.sum(g.astype(jnp.float32), axis=1)
            products.append(p * _dot(g.T, weights_kernel_t))
        total = _over_parts(jnp.add, jnp.sum, products)
        by_logits = [
            (x - p * total[None]).astype(dtype)
            for x, p in zip(products, probabilities, strict=True)
        ]
        tile.store(
            by_scores_ref, [_dot(x, logits_kernel_t).T for x in by_logits]
        )
        # Read again, which is cheaper than keeping them in registers.
        for x, by in zip(tile.load(scores_ref), by_logits, strict=True):
            by_logits_kernel += _dot(x, by)
        return by_logits_kernel, by_weights_kernel, by_bias

    zero = jnp.zeros((COLUMNS, COLUMNS), jnp.float32)
    sums = lax.fori_loop(
        0,
        tiling.tiles,
        add_tile,
        (zero, zero, jnp.zeros((COLUMNS,), jnp.float32)),
    )
    by_logits_kernel_ref[program], by_weights_kernel_ref[program] = sums[:2]
    by_bias_ref[program] = sums[2]


def _over_parts(combine: Any, reduce: Any, arrays: list[Array]) -> Array:
    """Reduces the keys of all parts."""
    return functools.reduce(combine, [reduce(x, axis=0) for x in arrays])


def _grid(x: Array) -> tuple[Array, Array]:
    """A vector as rows and as columns of a square."""
    shape = (x.shape[0], x.shape[0])
    return jnp.broadcast_to(x[:, None], shape), jnp.broadcast_to(x[None], shape)


def _dot(x: Array, y: Array) -> Array:
    return jnp.dot(
        x,
        y,
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
