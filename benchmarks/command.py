"""The command of a benchmark, and the options that several have."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from cyclopts.validators import Number


def check_output(kind: Any, path: Path | None) -> None:
    """Checks that the output can be written, before the measurements.

    Raises:
        ValueError: it is a folder, or inside a file.
    """
    # Not above: a baseline's process would import Keras and count its memory.
    from keras_cait.files import folder_path

    if path:
        folder_path(path.parent)
        if path.is_dir():
            raise ValueError(f"{str(path)!r} is a folder.")


AT_LEAST_1 = Number(gte=1)
Count = Annotated[int, Parameter(validator=AT_LEAST_1)]
Rounds = Annotated[
    int,
    Parameter(
        name="--rounds",
        validator=AT_LEAST_1,
        help="Rounds; tables show their median.",
    ),
]
Output = Annotated[
    Path | None,
    Parameter(
        name="--output", validator=check_output, help="JSON file to write."
    ),
]


def benchmark_app(name: str, description: str | None) -> App:
    """The command `python -m benchmarks.NAME`."""
    return App(
        name=f"python -m benchmarks.{name}",
        help=description,
        default_parameter=Parameter(consume_multiple=True),
    )


def run(app: App) -> None:
    """Runs the command of a benchmark as those of the project."""
    # Not above: a baseline's process would import Keras and count its memory.
    from keras_cait.command_line import run

    run(app)
