"""Running a command inside the tests."""

from collections.abc import Callable
from typing import Any

import pytest
from cyclopts import App

from keras_cait.command_line import run


def exit_status(
    command: App | Callable[[list[str]], Any], *arguments: object
) -> Any:
    """Runs an app or a `main` with the arguments; returns its exit status."""
    words = list(map(str, arguments))
    with pytest.raises(SystemExit) as end:
        run(command, words) if isinstance(command, App) else command(words)
    return end.value.code
