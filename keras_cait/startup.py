"""How the project's programs end when an import fails or is interrupted.

`keras_cait` imports this first, before Keras. What fails later, once a command
runs, is handled by `keras_cait.command_line.run`.
"""

import sys
from types import TracebackType

PACKAGES = ("keras_cait", "training", "export", "benchmarks")


def is_program() -> bool:
    """Whether Python runs `keras-cait`, or `python -m` of this project.

    Example:
    >>> is_program()
    False
    """
    if sys.orig_argv[1:2] == ["-m"]:
        return sys.orig_argv[2].partition(".")[0] in PACKAGES
    return sys.argv[0].endswith("/keras-cait")


def missing_package(error: ImportError) -> str:
    """What to do about an import that failed.

    Example:
    >>> missing_package(ImportError("No module named 'jax'", name="jax"))
    "No module named 'jax'. Install it: pip install jax"
    """
    if error.name is None:  # it says what to install
        return str(error)
    package = error.name.partition(".")[0]
    return f"{error}. Install it: pip install {package}"


def explain(
    kind: type[BaseException],
    error: BaseException,
    traceback: TracebackType | None,
) -> None:
    """Prints an exception while importing as one line; `sys.excepthook`.

    Args:
        kind, error, traceback: the exception. Other kinds than a missing
            package, an unknown backend and Ctrl-C are bugs, whose traceback is
            printed.

    Example:
    >>> explain(KeyboardInterrupt, KeyboardInterrupt(), None)
    """
    if isinstance(error, KeyboardInterrupt):
        message = "Interrupted."
    elif isinstance(error, ImportError):
        message = missing_package(error)
    elif "import backend" in str(error):  # Keras' ValueError
        message = f"{error}. Set KERAS_BACKEND to tensorflow or jax."
    else:
        sys.__excepthook__(kind, error, traceback)
        return
    print(message, file=sys.stderr)


if is_program():
    sys.excepthook = explain
