"""How the programs of this folder end: one clear line for what went wrong."""

import sys

import tensorflow as tf


def run(main):
    """Runs a program and turns what its user can mend into one line.

    Args:
        main: function without arguments.
    """
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nInterrupted. The same command goes on from the last epoch.")
    except (
        ValueError,
        OSError,
        FloatingPointError,
        tf.errors.OpError,
    ) as error:
        sys.exit(f"{type(error).__name__}: {error}")
