"""Running a command inside the tests."""

from collections.abc import Callable
from typing import Any

import pytest


def exit_status(main: Callable[[list[str]], Any], *arguments: object) -> Any:
    """Runs `main` with the arguments, and returns its exit status."""
    with pytest.raises(SystemExit) as end:
        main(list(map(str, arguments)))
    return end.value.code
