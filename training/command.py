"""How the programs of this folder end: one clear line for what went wrong."""

import sys

import tensorflow as tf


def run(main):
    """Runs a program and turns what its user can mend into one line.

    Args:
        main: function without arguments.
    """
    sys.stdout.reconfigure(line_buffering=True)  # seen at once in a log, too
    try:
        main()
    except KeyboardInterrupt as stop:
        print(f"\n{stop or 'Interrupted.'}", file=sys.stderr)
        sys.exit(130)  # as a shell reports Ctrl-C
    except (
        ValueError,
        OSError,
        FloatingPointError,
        tf.errors.OpError,
    ) as error:
        sys.exit(f"{type(error).__name__}: {error}")
