"""Shared options and error handling of all commands.

Every command is a `cyclopts.App` that `run` parses and runs. Wrong usage is one
line on stderr and exit status 2, a failure is one line and 1, Ctrl-C is one
line and 130, SIGTERM is one line and 143.
"""

import gc
import math
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from threading import Timer
from types import FrameType
from typing import Annotated, Any, Literal, NoReturn

from cyclopts import App, CycloptsError, Parameter, Token
from cyclopts.validators import Number

from keras_cait.files import printable
from keras_cait.startup import handle, missing_package


def whole_number(kind: type, tokens: Sequence[Token]) -> int:
    """Reads an integer. Cyclopts' own reading rounds 1.5 to 2."""
    value = tokens[0].value
    try:
        return int(value)
    except ValueError:
        raise ValueError(f'unable to convert "{value}" into int.') from None


_TRAINED = (
    "Published model (S24, or S24-384 at another size), run folder, .keras file"
)
_WEIGHTS = "weights file (.safetensors, .pth; .weights.h5 with --variant)"
TrainedModel = Annotated[
    str, Parameter(name="--model", help=f"{_TRAINED} or {_WEIGHTS}.")
]
ModelSource = Annotated[
    str,
    Parameter(
        name="--model",
        help=f"{_TRAINED}, {_WEIGHTS}, SavedModel or .tflite file.",
    ),
]
Variant = Annotated[
    str | None,
    Parameter(
        name="--variant",
        help="Architecture of a weights file that does not record it, such as "
        "S24.",
    ),
]
ImageSize = Annotated[
    int | None,
    Parameter(
        name="--image-size",
        # More would take all memory for position embeddings.
        validator=Number(gte=1, lte=4096),
        converter=whole_number,
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

# How many of something.
Count = Annotated[
    int, Parameter(validator=Number(gte=1), converter=whole_number)
]
Seconds = Annotated[float, Parameter(validator=Number(gt=0, lt=math.inf))]
BatchSize = Annotated[
    Count, Parameter(name="--batch-size", help="Images per batch.")
]
MaxUnreadable = Annotated[
    int,
    Parameter(
        name="--max-unreadable",
        validator=Number(gte=0),
        converter=whole_number,
        help="Maximum number of unreadable images to skip and name; with more, "
        "the command stops.",
    ),
]
CropRatio = Annotated[
    float,
    Parameter(
        name="--crop-ratio",
        validator=Number(gt=0, lte=1),
        help="Share of the images' shorter side to keep.",
    ),
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
            after Ctrl-C; 143 after SIGTERM.

    Example:
    >>> app = App(name="greet")
    >>> @app.default
    ... def greet(name: str):
    ...     print("Hello", name)
    >>> run(app, ["Ada"])
    Traceback (most recent call last):
    SystemExit: 0
    """
    if not gc.isenabled():  # since `keras_cait.startup`
        gc.freeze()  # to search what is imported, also at exit, takes 0.3 s
        gc.enable()
    _open_missing_streams()
    for stream in (sys.stdout, sys.stderr):  # file names can be any bytes
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace", line_buffering=True)
    app.suppress_keyboard_interrupt = False
    try:
        with _stoppable():
            status = app(
                argv,
                exit_on_error=False,
                print_error=False,
                result_action="return_value",
            )
        sys.stdout.flush()
    except CycloptsError as error:
        fail(f"{error} See --help.", 2)
    except Terminated:
        fail("Terminated.", 143)
    except KeyboardInterrupt as error:
        fail(str(error) or "Interrupted.", 130)
    except BrokenPipeError:  # as in `| head`
        _drop_output()
        sys.exit(1)
    except Exception as error:
        if isinstance(error, ImportError):
            fail(missing_package(error))
        if not isinstance(error, EXPECTED) and not _is_tensorflow_error(error):
            raise
        fail(error, 1)
    sys.exit(status if isinstance(status, int) else 0)


# What wrong input or a full disk raises.
EXPECTED = (ValueError, OSError, FloatingPointError, MemoryError)


def _is_tensorflow_error(error: Exception) -> bool:
    """Whether a TensorFlow operation has failed; without TensorFlow."""
    return any(kind.__name__ == "OpError" for kind in type(error).__mro__)


class Terminated(KeyboardInterrupt):
    """SIGTERM stopped the command, which cleans up as after Ctrl-C."""


@contextmanager
def _stoppable() -> Iterator[None]:
    """Raises an exception on SIGTERM and Ctrl-C, so that commands clean up."""
    received: list[type[KeyboardInterrupt]] = []

    def stop(number: int, frame: FrameType | None) -> None:
        kind = Terminated if number == signal.SIGTERM else KeyboardInterrupt
        received.append(kind)
        raise kind

    def unraisable(lost: Any) -> None:
        if issubclass(lost.exc_type, KeyboardInterrupt):
            # A destructor has swallowed the signal, which is repeated.
            is_ctrl_c = not issubclass(lost.exc_type, Terminated)
            number = signal.SIGINT if is_ctrl_c else signal.SIGTERM
            Timer(0.01, os.kill, (os.getpid(), number)).start()
        elif not received:  # otherwise of what the signal has cut short
            show(lost)

    show, sys.unraisablehook = sys.unraisablehook, unraisable
    before = {
        number: handle(number, stop)
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if received:
            traceback.clear_frames(error.__traceback__)  # runs destructors
            if not isinstance(error, KeyboardInterrupt):
                # Native code has replaced the exception by one of its own.
                raise received[0] from None
        raise
    finally:
        sys.unraisablehook = show
        for number, handler in before.items():
            handle(number, handler)


def _open_missing_streams() -> None:
    """Opens streams that were closed, as by `>&-`, on the null device.

    Otherwise the next file takes the stream's number, and what libraries print
    ends up in it.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, os.fdopen(null, mode))


def _drop_output() -> None:
    """Drops what stdout does not take, or Python fails to flush it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def require_tensorflow() -> None:
    """Checks that Keras runs on TensorFlow, which training and serving need.

    Raises:
        ValueError: another backend is chosen.

    Example:
    >>> require_tensorflow()
    """
    import keras  # not at the top: the options do not need it

    backend = keras.backend.backend()
    if backend != "tensorflow":
        raise ValueError(
            "This command needs Keras' TensorFlow backend. Got "
            f"KERAS_BACKEND={backend}."
        )


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
    try:
        sys.stdout.flush()
    except OSError:  # the disk is full
        _drop_output()
    sys.exit(status)


def one_line(message: object) -> str:
    """The message of an error on one line, without the names of operations.

    Example:
    >>> one_line("Out of memory:\\n  4 GB [Op:Conv2D] name: ")
    'Out of memory: 4 GB'
    """
    if isinstance(message, OSError) and message.strerror:
        place = f": {message.filename!r}" if message.filename else ""
        return f"{message.strerror}{place}."
    # Keras' bold type, and the parts of a graph that TensorFlow names
    noise = (
        r"\x1b\[[0-9;]*m|\{\{function_node \S+\}\}"
        r"|\[\[\{\{node \S+\}\}\]\]|\[Op:\S+\]( name:)?"
    )
    text = re.sub(noise, "", str(message))
    return printable(" ".join(text.split())) or type(message).__name__
