"""How types, values and near misses are put into words in a recipe's errors."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NoReturn, Union

from armd_scale.errors import RecipeError

NAMES = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "a mapping",
    type(None): "null",
}
LONGEST_VALUE = 60


def join(path: str, key: object) -> str:
    """A dotted path and one more key or list index."""
    return f"{path}.{key}" if path else str(key)


def describe_type(kind: Any) -> str:
    """What a type annotation asks for, to stand after `must be`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin is tuple:
        count = "" if Ellipsis in arguments else f" of {len(arguments)}"
        return f"a list{count}, {describe_type(arguments[0])} each"
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(describe_type, arguments)))
    if dataclasses.is_dataclass(kind):
        return f"a mapping of {', '.join(field.name for field in dataclasses.fields(kind))}"
    return NAMES[kind]


def format_value(value: object) -> str:
    """A value much as its author wrote it, shortened."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(format_value, value))}]"[:LONGEST_VALUE]
    # Quoted, and line breaks escaped: an error stays one line.
    return (repr(value) if isinstance(value, str) else str(value))[:LONGEST_VALUE]


def did_you_mean(value: object, known: Iterable[object], *, cutoff: float = 0.6) -> str:
    """`; did you mean ...?` for the known name that is spelt most alike, or nothing."""
    names = difflib.get_close_matches(str(value), map(str, known), n=1, cutoff=cutoff)
    return f"; did you mean {names[0]}?" if names else ""


def raise_rule_error(key: str, value: object, *, requirement: str, hint: str) -> NoReturn:
    """Raises the sentence of a broken rule: key, what must hold, what was got, what to do."""
    raise RecipeError(f"{key} must {requirement}, got {format_value(value)}; {hint}")
