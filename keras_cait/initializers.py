"""Initial weights: random, or 0 where a file is about to fill them."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import keras
from keras import ops

STDDEV = 0.02

_filled_later = ContextVar("filled_later", default=False)


@contextmanager
def filled_later(is_so: bool = True) -> Iterator[None]:
    """Blocks that are built inside start at 0, as a file will fill them.

    To draw their kernels takes longer than all else in building and loading.
    All other weights, such as those of a new head, start as ever.

    Args:
        is_so: whether it has an effect.

    Example:
    >>> with filled_later():
    ...     model = CaiT(24, 2, 2, patch_size=8, input_shape=(32, 32, 3))
    >>> float(ops.max(model.self_attention_blocks[0].mlp.fc1.kernel))
    0.0
    """
    token = _filled_later.set(is_so or _filled_later.get())
    try:
        yield
    finally:
        _filled_later.reset(token)


def kernel_initializer() -> keras.initializers.Initializer:
    """Normal of 0.02, for kernels, class token and positions.

    PyTorch's `trunc_normal_` truncates at 2, which is 100 standard deviations.
    """
    return keras.initializers.RandomNormal(stddev=STDDEV)


@keras.saving.register_keras_serializable(package="keras_cait")
class BlockInitializer(keras.initializers.RandomNormal):
    """`kernel_initializer` of dense layers in blocks, for `filled_later`."""

    def __init__(self, stddev: float = STDDEV, **kwargs: Any):
        super().__init__(stddev=stddev, **kwargs)

    def __call__(self, shape: tuple[int, ...], dtype: Any = None) -> Any:
        if _filled_later.get():
            return ops.zeros(shape, dtype)
        return super().__call__(shape, dtype)
