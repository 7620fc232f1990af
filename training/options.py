"""Command-line options of the training programs, without TensorFlow."""

import ast
import inspect
from collections.abc import Sequence
from dataclasses import fields, make_dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from cyclopts import Parameter, Token

from training.recipe import Recipe

StrategyName = Annotated[
    Literal["auto", "one", "mirrored", "workers", "tpu"],
    Parameter(
        name="--strategy",
        help="Devices: one, all GPUs of this machine (mirrored), the processes "
        "in TF_CONFIG (workers), a TPU, or whichever the environment asks for "
        "(auto).",
    ),
]
DataDir = Annotated[
    Path | None,
    Parameter(
        name="--data-dir",
        help="Folder in which TensorFlow Datasets keeps its files.",
    ),
]
Raw = Annotated[
    bool,
    Parameter(
        name="--raw",
        negative=(),
        help="Use the weights of a run's last step, not its EMA weights.",
    ),
]


def options_of(recipe: Recipe) -> type:
    """A dataclass of the options that override a recipe's fields.

    Every option is `None` unless it is given; `--help` shows the recipe's own
    value as its default.

    Args:
        recipe: the recipe to override.

    Example:
    >>> from training.recipes import RECIPES
    >>> options_of(RECIPES["quickstart"])(epochs=4).epochs
    4
    """
    texts = field_texts()
    converters = {int: whole_number}
    return make_dataclass(
        "Options",
        [
            (
                field.name,
                Annotated[
                    without_none(field.type),
                    Parameter(
                        help=texts[field.name],
                        show_default=shown(recipe, field.name),
                        converter=converters.get(without_none(field.type)),
                    ),
                ],
                None,
            )
            for field in fields(Recipe)
        ],
        # Otherwise cyclopts takes it for a class of the standard library.
        namespace={"__module__": __name__},
    )


def without_none(kind: Any) -> Any:
    """A type without `None`, as which the word "none" would be read.

    Example:
    >>> without_none(int | None)
    <class 'int'>
    """
    if get_origin(kind) not in (Union, UnionType):
        return kind
    (other,) = (one for one in get_args(kind) if one is not NoneType)
    return other


def whole_number(kind: type, tokens: Sequence[Token]) -> int:
    """As of `keras_cait.command_line`, which imports Keras."""
    value = tokens[0].value
    try:
        return int(value)
    except ValueError:
        raise ValueError(f'unable to convert "{value}" into int.') from None


def first_and_last(kind: type, tokens: Sequence[Token]) -> tuple[int, int]:
    """Reads two steps, such as `100,110`.

    Raises:
        ValueError: these are not two steps, the first one first.

    Example:
    >>> first_and_last(tuple, [Token(value="100,110")])
    (100, 110)
    """
    value = tokens[0].value
    try:
        first, last = map(int, value.split(","))
    except ValueError:
        first, last = 0, 0
    if not 1 <= first <= last:
        raise ValueError(
            f"expected the first and the last step, such as 100,110. Got "
            f'"{value}".'
        )
    return first, last


def given(options: Any) -> dict[str, Any]:
    """The options that were given, by field name.

    Example:
    >>> given(options_of(Recipe())(epochs=4))
    {'epochs': 4}
    """
    values = vars(options).items()
    return {name: value for name, value in values if value is not None}


def shown(recipe: Recipe, name: str) -> str | bool:
    """The default of an option in `--help`; `False` shows none."""
    value = getattr(recipe, name)
    if value is None and recipe.variant:
        return "the variant's"
    return False if value in (None, "") else str(value)


@cache
def field_texts() -> dict[str, str]:
    """The docstrings of the fields of `Recipe`, by name."""
    tree = ast.parse(inspect.getsource(Recipe))
    (body,) = [n.body for n in ast.walk(tree) if isinstance(n, ast.ClassDef)]
    return {
        ast.unparse(field.target): " ".join(
            ast.literal_eval(text.value).split()
        )
        for field, text in pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
    }
