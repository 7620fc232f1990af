"""One grammar for all commands: shared options, and one way to fail.

Every command is a `cyclopts.App` that `run` parses and runs. Wrong usage is one
line on stderr and exit status 2, a failure is one line and 1, Ctrl-C is 130.
"""

import os
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import keras
from cyclopts import App, CycloptsError, Parameter

ModelSource = Annotated[
    str,
    Parameter(
        name="--model",
        help="Published model (S24, or S24-384 at another size), run folder, "
        ".keras file, weights file (.safetensors, .pth; .weights.h5 with "
        "--variant), SavedModel or .tflite file.",
    ),
]
Variant = Annotated[
    str | None,
    Parameter(
        name="--variant",
        help="Architecture of a weights file that does not tell it, such as "
        "S24.",
    ),
]
ImageSize = Annotated[
    int | None,
    Parameter(
        name="--image-size",
        help="Height and width of the model's input in pixels. Default: the "
        "model's own.",
    ),
]
Labels = Annotated[
    Path | None,
    Parameter(
        name="--labels",
        help="Text file with one class name per line. Default: labels.txt "
        "beside the model, otherwise ImageNet's for 1000 classes.",
    ),
]
Data = Annotated[
    str,
    Parameter(
        name="--data",
        help="Dataset: digits, folder:PATH (one subfolder per class), or a "
        "name of TensorFlow Datasets.",
    ),
]
DataDir = Annotated[
    Path | None,
    Parameter(
        name="--data-dir",
        help="Folder in which TensorFlow Datasets keeps its files.",
    ),
]
BatchSize = Annotated[
    int, Parameter(name="--batch-size", help="Images per batch.")
]
Precision = Annotated[
    Literal["float32", "mixed_bfloat16", "mixed_float16"],
    Parameter(name="--precision", help="Dtype policy of the model."),
]


def run(app: App, argv: Sequence[str] | None = None) -> NoReturn:
    """Parses the arguments, runs the command and exits.

    Args:
        app: the command or group of commands.
        argv: arguments; `None` takes those of the process.

    Raises:
        SystemExit: always. The status is the command's result if it returns
            an int, otherwise 0; 1 after a failure; 2 after wrong usage; 130
            after Ctrl-C.

    Example:
    >>> app = App(name="greet")
    >>> @app.default
    ... def greet(name: str):
    ...     print("Hello", name)
    >>> run(app, ["Ada"])
    Traceback (most recent call last):
    SystemExit: 0
    """
    for stream in (sys.stdout, sys.stderr):  # file names can be any bytes
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace", line_buffering=True)
    app.suppress_keyboard_interrupt = False
    try:
        status = app(
            argv,
            exit_on_error=False,
            print_error=False,
            result_action="return_value",
        )
        sys.stdout.flush()
    except CycloptsError as error:
        fail(f"{error} See --help.", 2)
    except KeyboardInterrupt as error:
        fail(str(error) or "Interrupted.", 130)
    except BrokenPipeError:  # as in `| head`; the flush at exit must not fail
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if not isinstance(error, EXPECTED) and not _is_backend_error(error):
            raise
        fail(error, 1)
    sys.exit(status if isinstance(status, int) else 0)


# What wrong input, a missing package or a full disk raises.
EXPECTED = (ValueError, OSError, ImportError, FloatingPointError, MemoryError)


def _is_backend_error(error: Exception) -> bool:
    """Whether a TensorFlow operation has failed."""
    if keras.backend.backend() != "tensorflow":
        return False
    return any(kind.__name__ == "OpError" for kind in type(error).__mro__)


def fail(message: object, status: int = 1) -> NoReturn:
    """Prints one line to stderr and exits.

    Args:
        message: what went wrong, and how to fix it; line breaks become spaces.
        status: exit status.

    Example:
    >>> fail("No images in 'photos'.")
    Traceback (most recent call last):
    SystemExit: 1
    """
    print(one_line(message), file=sys.stderr)
    sys.exit(status)


def one_line(message: object) -> str:
    """The message of an error without line breaks.

    Example:
    >>> one_line("Out of memory:\\n  4 GB")
    'Out of memory: 4 GB'
    """
    if isinstance(message, OSError) and message.strerror:
        place = f": {message.filename!r}" if message.filename else ""
        return f"{message.strerror}{place}."
    return " ".join(str(message).split()) or type(message).__name__
