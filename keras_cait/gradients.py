"""Gradients with TensorFlow and JAX: Keras has no function for them."""

from collections.abc import Callable

import keras

from keras_cait.layers import Tensor


def gradients(
    function: Callable[..., Tensor], *inputs: Tensor
) -> tuple[Tensor, ...]:
    """Returns the gradients of `function(*inputs)` by each input.

    Args:
        function: of the inputs, returns a scalar tensor.
        inputs: float tensors of the backend.

    Example:
    >>> x = keras.ops.convert_to_tensor([1.0, 2.0])
    >>> (gradient,) = gradients.gradients(lambda x: keras.ops.sum(x * x), x)
    >>> keras.ops.convert_to_numpy(gradient).tolist()
    [2.0, 4.0]
    """
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(inputs)
            value = function(*inputs)
        return tape.gradient(value, inputs)
    if backend == "jax":
        import jax

        return jax.grad(function, argnums=tuple(range(len(inputs))))(*inputs)
    raise NotImplementedError(
        f"There are no gradients with Keras' backend {backend!r}. Set "
        "KERAS_BACKEND to tensorflow or jax."
    )
