"""Wording of types, values and near misses in the errors of a recipe."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NoReturn, Union, cast

from armd_scale.errors import RecipeError

_TYPE_NAMES: dict[Any, str] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "a mapping",
    type(None): "null",
}
MAX_VALUE_LENGTH = 60


def join(path: str, key: object) -> str:
    """Append a key or list index to a dotted path."""
    return f"{path}.{key}" if path else str(key)


def describe_type(kind: Any) -> str:
    """Return what a type annotation requires, in words that follow `must be`."""
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
    return _TYPE_NAMES.get(kind, "a mapping")


def format_value(value: object) -> str:
    """Return a value as its author would write it in YAML, shortened."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        items = cast("list[object] | tuple[object, ...]", value)
        return f"[{', '.join(map(format_value, items))}]"[:MAX_VALUE_LENGTH]
    # repr also escapes line breaks, so that an error stays one line.
    return (repr(value) if isinstance(value, str) else str(value))[:MAX_VALUE_LENGTH]


def did_you_mean(value: object, known: Iterable[object], *, cutoff: float = 0.6) -> str:
    """Return `; did you mean ...?` for the known name with the most similar spelling, or nothing.

    Args:
        value: what was written.
        known: the names to compare with.
        cutoff: least similarity, 0 to 1; 0 suggests the nearest name whatever it is.
    """
    names = difflib.get_close_matches(str(value), map(str, known), n=1, cutoff=cutoff)
    return f"; did you mean {names[0]}?" if names else ""


def raise_rule_error(key: str, value: object, *, requirement: str, hint: str = "") -> NoReturn:
    """Raise the RecipeError of a violated rule: `KEY must REQUIREMENT (got VALUE): HINT`.

    Args:
        key: the key that the rule is about.
        value: its value.
        requirement: what must hold, such as "be >= 1".
        hint: what to do, where that does not follow from the requirement.
    """
    advice = f": {hint}" if hint else ""
    raise RecipeError(f"{key} must {requirement} (got {format_value(value)}){advice}")
