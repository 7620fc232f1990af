"""One stack trace for all operations of a traced function.

TensorFlow notes the Python stack of every operation, and keeps a copy of each
once XLA has compiled them: 0.4 GB for a training step of XXS24, and a tenth of
the time to its first step. They would name lines of this program in an error
that the user's data cannot cause.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tensorflow.python.util import tf_stack


@contextmanager
def one_stack_trace() -> Iterator[None]:
    """Operations that are made inside share the stack of this call.

    Also a decorator of a function to trace.
    """
    # No public option exists. Nothing is lost where TensorFlow no longer calls
    # this function: each operation then has its own trace.
    module: Any = tf_stack
    extract_stack = module.extract_stack
    shared = extract_stack()
    module.extract_stack = lambda stacklevel=1: shared
    try:
        yield
    finally:
        module.extract_stack = extract_stack
