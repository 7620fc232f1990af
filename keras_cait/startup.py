"""How the project's programs import, and end if that fails or is interrupted.

`keras_cait` imports this first, before Keras. What fails later, once a command
runs, is handled by `keras_cait.command_line.run`.
"""

import gc
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

PACKAGES = ("keras_cait", "training", "export", "benchmarks")


def program() -> str | None:
    """The package that Python runs: `keras-cait`, or `python -m` of ours.

    Example:
    >>> program() is None
    True
    """
    # The interpreter, its options and what it runs, without the arguments.
    words = sys.orig_argv[: len(sys.orig_argv) - len(sys.argv) + 1]
    if words[-2:-1] == ["-m"]:
        package = words[-1].partition(".")[0]
        return package if package in PACKAGES else None
    return "keras_cait" if sys.argv[0].endswith("/keras-cait") else None


def missing_package(error: ImportError) -> str:
    """What to do about an import that failed.

    Example:
    >>> missing_package(ImportError("No module named 'jax'", name="jax"))
    "No module named 'jax'. Install it: pip install jax"
    """
    if error.name is None:  # it says what to install
        return str(error)
    needed = error.name.partition(".")[0]
    is_chosen = needed == os.environ.get("KERAS_BACKEND")
    if program() in ("training", "export") and not is_chosen:
        # A package may be imported by another name than it is installed by.
        needed = f"-r requirements/{program()}.txt"
    return f"{error}. Install it: pip install {needed}"


def explain(
    kind: type[BaseException],
    error: BaseException,
    traceback: TracebackType | None,
) -> None:
    """Prints an exception while importing as one line; `sys.excepthook`.

    Args:
        kind, error, traceback: the exception. Other kinds than a missing
            package and an unknown backend are bugs, whose traceback is printed.

    Example:
    >>> explain(ImportError, ImportError("No module named 'jax'"), None)
    """
    if isinstance(error, ImportError):
        message = missing_package(error)
    elif "import backend" in str(error):  # Keras' ValueError
        message = f"{error}. Set KERAS_BACKEND to tensorflow or jax."
    else:
        sys.__excepthook__(kind, error, traceback)
        return
    print(message, file=sys.stderr)


def stop(number: int, frame: FrameType | None) -> None:
    """Ends the process at once: nothing has been written while importing.

    An exception could be lost or never leave the import of a native library.
    """
    name = "Interrupted" if number == signal.SIGINT else "Terminated"
    with suppress(OSError):  # stderr is closed
        os.write(2, f"{name}.\n".encode())
    os._exit(128 + number)


def handle(number: int, handler: Callable[[int, FrameType | None], Any]) -> Any:
    """Handles a signal unless it is ignored, as by `nohup`.

    Returns:
        What handled it before.
    """
    if signal.getsignal(number) == signal.SIG_IGN:
        return signal.SIG_IGN
    return signal.signal(number, handler)


if program():
    # Failures are one line. Errors of TensorFlow stay.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    gc.disable()  # until `run`: what imports make is no garbage
    sys.excepthook = explain
    handle(signal.SIGINT, stop)
    handle(signal.SIGTERM, stop)
