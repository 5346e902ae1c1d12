"""From plain mappings to frozen dataclasses and back, with errors that name key, place and value.

Reads what `schema` is made of: text, numbers, booleans, null, literals, tuples, nested dataclasses,
dataclasses told apart by their `policy`, and fields whose keys stand among those of their owner
(`metadata={"flattened": True}`).
"""

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, Union

from armd_scale.config.messages import describe_type, did_you_mean, format_value, join
from armd_scale.errors import RecipeError

DISCRIMINATOR = "policy"


class DataclassDecoder:
    """Reads a tree of values into the dataclass `root`.

    Args:
        root: the dataclass that the whole tree becomes.
        locate: from a dotted path to where it was written, such as `recipes/a.yaml:7`.
    """

    def __init__(self, root: Any, locate: Callable[[str], str]) -> None:
        self._root = root
        self._locate = locate

    def decode(self, value: object) -> Any:
        """The whole tree as an instance of `root`.

        Raises:
            RecipeError: unknown or missing key, or a value of another type.
        """
        return self._read_dataclass(self._root, value, "")

    def _read(self, kind: Any, value: object, path: str) -> Any:
        origin = typing.get_origin(kind)
        if origin in (Union, types.UnionType):
            return self._read_union(kind, value, path)
        if origin is Literal:
            return self._read_literal(kind, value, path)
        if origin is tuple:
            return self._read_tuple(kind, value, path)
        if dataclasses.is_dataclass(kind):
            return self._read_dataclass(kind, value, path)
        if kind is float:
            return self._read_float(value, path)
        # Not isinstance: true is an int in Python, but never a number of layers.
        if type(value) is not kind:
            quotable = kind is str and not isinstance(value, Mapping | list | None)
            raise self._mismatch(kind, value, path, "; put it in quotes" if quotable else "")
        return value

    def _error(self, path: str, problem: str) -> RecipeError:
        return RecipeError(f"{self._locate(path)}: {path or 'a recipe'} {problem}")

    def _mismatch(self, kind: Any, value: object, path: str, hint: str = "") -> RecipeError:
        return self._error(path, f"must be {describe_type(kind)}, got {format_value(value)}{hint}")

    def _read_float(self, value: object, path: str) -> float:
        # YAML 1.1 takes 3e-4 for text, because it lacks a dot.
        number = math.nan
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            try:
                number = float(value)
            except (ValueError, OverflowError):
                number = math.nan
        if not math.isfinite(number):
            raise self._mismatch(float, value, path)
        return number

    def _read_literal(self, kind: Any, value: object, path: str) -> Any:
        choices = typing.get_args(kind)
        for choice in choices:
            if type(value) is type(choice) and value == choice:
                return choice
        raise self._mismatch(kind, value, path, did_you_mean(value, choices))

    def _read_tuple(self, kind: Any, value: object, path: str) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple):
            raise self._mismatch(kind, value, path)
        kinds = typing.get_args(kind)
        if kinds[-1] is Ellipsis:
            kinds = (kinds[0],) * len(value)
        if len(kinds) != len(value):
            raise self._mismatch(kind, value, path)
        items = enumerate(zip(kinds, value, strict=True))
        return tuple(self._read(item_kind, item, join(path, i)) for i, (item_kind, item) in items)

    def _read_union(
        self, kind: Any, value: object, path: str, *, sibling_keys: tuple[str, ...] = ()
    ) -> Any:
        members = typing.get_args(kind)
        if value is None and type(None) in members:
            return None
        members = tuple(member for member in members if member is not type(None))
        if all(hasattr(member, DISCRIMINATOR) for member in members):
            return self._read_tagged(members, value, path, sibling_keys)
        if len(members) == 1:
            return self._read(members[0], value, path)
        for member in members:
            if isinstance(value, list if typing.get_origin(member) is tuple else member):
                return self._read(member, value, path)
        raise self._mismatch(kind, value, path)

    def _read_tagged(
        self, members: tuple[Any, ...], value: object, path: str, beside: tuple[str, ...]
    ) -> Any:
        by_tag = {getattr(member, DISCRIMINATOR): member for member in members}
        mapping = self._mapping(dict, value, path)
        tag = mapping.get(DISCRIMINATOR)
        if DISCRIMINATOR not in mapping:
            raise self._error(
                join(path, DISCRIMINATOR), f"is missing, give it one of {', '.join(by_tag)}"
            )
        if not isinstance(tag, str) or tag not in by_tag:
            raise self._mismatch(
                Literal[*by_tag], tag, join(path, DISCRIMINATOR), did_you_mean(tag, by_tag)
            )
        rest = {key: item for key, item in mapping.items() if key != DISCRIMINATOR}
        return self._read_dataclass(by_tag[tag], rest, path, beside=(DISCRIMINATOR, *beside))

    def _read_dataclass(
        self, kind: Any, value: object, path: str, *, beside: tuple[str, ...] = ()
    ) -> Any:
        """Keys named `beside` are the owner's: known to the reader of the file, read elsewhere."""
        mapping = self._mapping(kind, value, path)
        hints = typing.get_type_hints(kind)
        fields = {field.name: field for field in dataclasses.fields(kind)}
        flattened = [name for name, field in fields.items() if is_flattened(field)]
        own = tuple(name for name in fields if name not in flattened)
        arguments: dict[str, Any] = {}
        for name in flattened:
            rest = {key: item for key, item in mapping.items() if key not in own}
            arguments[name] = self._read_union(hints[name], rest, path, sibling_keys=own)
        if not flattened:
            self._refuse_unknown(mapping, own, path, beside)
        for name in own:
            if name in mapping:
                arguments[name] = self._read(hints[name], mapping[name], join(path, name))
            elif is_required(fields[name]):
                raise self._error(
                    join(path, name), f"is missing, give it {describe_type(hints[name])}"
                )
        return kind(**arguments)

    def _mapping(self, kind: Any, value: object, path: str) -> Mapping[object, object]:
        if not isinstance(value, Mapping):
            raise self._mismatch(kind, value, path)
        return value

    def _refuse_unknown(
        self,
        mapping: Mapping[object, object],
        own: tuple[str, ...],
        path: str,
        beside: tuple[str, ...],
    ) -> None:
        known = (*own, *beside)
        for key in mapping:
            if key not in own:
                elsewhere = [p for p in key_paths(self._root) if p.split(".")[-1] == key]
                hint = did_you_mean(key, known) or did_you_mean(key, elsewhere, cutoff=0.0)
                hint = hint or f"; known here: {', '.join(known)}"
                raise self._error(join(path, key), f"is not a known key{hint}")


def is_flattened(field: dataclasses.Field[Any]) -> bool:
    """Whether a field's keys stand among those of its owner."""
    return field.metadata.get("flattened", False)


def is_required(field: dataclasses.Field[Any]) -> bool:
    """Whether a field has no default."""
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


def key_paths(kind: Any, path: str = "") -> list[str]:
    """Dotted paths of every key that a dataclass has whatever the values, its sections included."""
    paths = []
    for name, hint in typing.get_type_hints(kind).items():
        if typing.get_origin(hint) is typing.ClassVar:
            continue
        paths.append(join(path, name))
        if dataclasses.is_dataclass(hint):
            paths += key_paths(hint, join(path, name))
    return paths


def to_dict(value: Any) -> Any:
    """The mappings, lists and scalars that `Reader` reads back as an equal value."""
    if isinstance(value, tuple):
        return [to_dict(item) for item in value]
    if not dataclasses.is_dataclass(value):
        return value
    plain = {DISCRIMINATOR: getattr(value, DISCRIMINATOR)} if hasattr(value, DISCRIMINATOR) else {}
    for field in dataclasses.fields(value):
        item = to_dict(getattr(value, field.name))
        plain |= item if is_flattened(field) else {field.name: item}
    return plain
