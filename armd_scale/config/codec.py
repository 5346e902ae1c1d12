"""Decode plain mappings into frozen dataclasses and back, with errors that name key and value.

Supports what `schema` consists of: text, numbers, booleans, null, literals, tuples, nested
dataclasses, abstract classes whose dataclasses are told apart by their `policy`, and fields whose
keys are written among those of their owner (`metadata={"flattened": True}`). `read_dataclass` reads
other JSON files of ours in the same way; they may also have mappings of arbitrary keys.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast

from armd_scale.config.messages import describe_type, did_you_mean, format_value, join
from armd_scale.config.renamed_keys import RENAMED_VALUES, present_key
from armd_scale.errors import ArmdError, RecipeError
from armd_scale.json_files import read_json_object

DISCRIMINATOR = "policy"

_Decoded = TypeVar("_Decoded")
# An index has hundreds of thousands of records of one class.
_type_hints = cache(typing.get_type_hints)


def read_dataclass(
    path: Path, kind: type[_Decoded], *, error_class: type[ArmdError], advice: str
) -> _Decoded:
    """Read a JSON file that holds one value of a dataclass.

    Args:
        path: the file.
        kind: the dataclass; it may raise ValueError for values that do not fit each other.
        error_class: class of the error.
        advice: what the user can do, for the message.

    Raises:
        ArmdError: (`error_class`) the file cannot be read, lacks a key, or has an unknown one or a
            value of a wrong type.
    """
    values = read_json_object(path, error_class=error_class, advice=advice)
    return decode_dataclass(values, kind, source=path, error_class=error_class, advice=advice)


def decode_dataclass(
    values: Mapping[str, Any],
    kind: type[_Decoded],
    *,
    source: Path,
    error_class: type[ArmdError],
    advice: str,
) -> _Decoded:
    """Decode what `source` holds; arguments and errors as of `read_dataclass`."""
    try:
        return DataclassDecoder(kind, lambda key: str(source)).decode(values)
    except (RecipeError, ValueError) as error:
        where = "" if isinstance(error, RecipeError) else f"{source}: "
        raise error_class(f"{where}{error}: {advice}") from error


class DataclassDecoder:
    """Decodes a tree of values into the dataclass `root`.

    Args:
        root: the dataclass that the whole tree becomes.
        origin_of: from a dotted path to where it was written, such as `recipes/a.yaml:7`.
        variants: for an abstract class the dataclasses that a value of it can be, told apart by
            their class attribute `policy` and the key of that name.
    """

    def __init__(
        self,
        root: type,
        origin_of: Callable[[str], str],
        variants: Mapping[type, tuple[type, ...]] | None = None,
    ) -> None:
        self._root = root
        self._origin_of = origin_of
        self._variants = variants or {}

    def decode(self, value: object) -> Any:
        """Return the whole tree as an instance of `root`.

        Raises:
            RecipeError: unknown or missing key, or a value of the wrong type.
        """
        return self._decode_dataclass(self._root, value, "")

    def _decode(self, kind: Any, value: object, path: str) -> Any:
        origin = typing.get_origin(kind)
        if kind in self._variants:
            return self._decode_variant(kind, value, path, ())
        if origin in (Union, types.UnionType):
            return self._decode_union(kind, value, path)
        if origin is Literal:
            return self._decode_literal(kind, value, path)
        if origin is tuple:
            return self._decode_tuple(kind, value, path)
        if dataclasses.is_dataclass(kind):
            return self._decode_dataclass(cast(type, kind), value, path)
        if origin is Mapping:
            items = self._require_mapping(dict, value, path)
            item_kind = typing.get_args(kind)[1]
            return {k: self._decode(item_kind, item, join(path, k)) for k, item in items.items()}
        if kind is float:
            return self._decode_float(value, path)
        # Not isinstance: true is an int in Python, but it is not a number of layers.
        if type(value) is not kind:
            # `name: 7` and `name: no` are a number and a boolean in YAML; quotes make them text.
            quotable = kind is str and not isinstance(value, Mapping | list | None)
            raise self._type_error(
                kind, cast(object, value), path, "; put it in quotes" if quotable else ""
            )
        if kind is str:
            self._check_text(cast(str, value), path)
        return value

    def _check_text(self, text: str, path: str) -> None:
        # Texts become names of files, process titles and YAML again, none of which takes these.
        if "\0" in text or any("\ud800" <= char <= "\udfff" for char in text):
            raise self._error(
                path,
                "must be text without NUL characters and halves of surrogate pairs (got "
                f"{format_value(text)})",
            )

    def _error(self, path: str, problem: str) -> RecipeError:
        return RecipeError(f"{self._origin_of(path)}: {path or 'a recipe'} {problem}")

    def _type_error(self, kind: Any, value: object, path: str, hint: str = "") -> RecipeError:
        return self._error(path, f"must be {describe_type(kind)} (got {format_value(value)}){hint}")

    def _decode_float(self, value: object, path: str) -> float:
        # YAML 1.1 reads 3e-4 as text, because it has no dot.
        number = math.nan
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            try:
                number = float(value)
            except (ValueError, OverflowError):
                number = math.nan
        if not math.isfinite(number):
            raise self._type_error(float, value, path)
        return number

    def _decode_literal(self, kind: Any, value: object, path: str) -> Any:
        choices = typing.get_args(kind)
        for choice in choices:
            if type(value) is type(choice) and value == choice:
                return choice
        renamed = RENAMED_VALUES.get((path.rpartition(".")[2], str(value)))
        hint = f"; {value} is now called {renamed}" if renamed else did_you_mean(value, choices)
        raise self._type_error(kind, value, path, hint)

    def _decode_tuple(self, kind: Any, value: object, path: str) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple):
            raise self._type_error(kind, value, path)
        items = cast("list[object]", value)
        kinds = typing.get_args(kind)
        # `tuple[X, ...]` is a list of any length; `tuple[X, Y]`, such as `betas`, has a fixed one.
        if kinds[-1] is Ellipsis:
            kinds = (kinds[0],) * len(items)
        if len(kinds) != len(items):
            raise self._type_error(kind, items, path)
        pairs = enumerate(zip(kinds, items, strict=True))
        return tuple(self._decode(item_kind, item, join(path, i)) for i, (item_kind, item) in pairs)

    def _decode_union(self, kind: Any, value: object, path: str) -> Any:
        members = typing.get_args(kind)
        if value is None and type(None) in members:
            return None
        members = tuple(member for member in members if member is not type(None))
        if len(members) == 1:
            return self._decode(members[0], value, path)
        # Of several members, such as text or a list, the value's own type decides.
        for member in members:
            if isinstance(value, list if typing.get_origin(member) is tuple else member):
                return self._decode(member, value, path)
        raise self._type_error(kind, value, path)

    def _decode_variant(
        self, kind: Any, value: object, path: str, sibling_keys: tuple[str, ...]
    ) -> Any:
        by_tag = {getattr(member, DISCRIMINATOR): member for member in self._variants[kind]}
        mapping = self._require_mapping(dict, value, path)
        tag_path = join(path, DISCRIMINATOR)
        if DISCRIMINATOR not in mapping:
            raise self._error(tag_path, f"is missing: set it to one of {', '.join(by_tag)}")
        tag = mapping[DISCRIMINATOR]
        if not isinstance(tag, str) or tag not in by_tag:
            raise self._type_error(Literal[*by_tag], tag, tag_path, did_you_mean(tag, by_tag))
        rest = {key: item for key, item in mapping.items() if key != DISCRIMINATOR}
        return self._decode_dataclass(
            by_tag[tag], rest, path, sibling_keys=(DISCRIMINATOR, *sibling_keys)
        )

    def _decode_dataclass(
        self, kind: type, value: object, path: str, *, sibling_keys: tuple[str, ...] = ()
    ) -> Any:
        """Decode one dataclass; `sibling_keys` are written beside its own and decoded elsewhere."""
        mapping = self._require_mapping(kind, value, path)
        hints = _type_hints(kind)
        fields = {field.name: field for field in dataclasses.fields(kind)}
        flattened = [name for name, field in fields.items() if is_flattened(field)]
        own = tuple(name for name in fields if name not in flattened)
        arguments: dict[str, Any] = {}
        for name in flattened:
            # Its keys are among the owner's: it gets all that are not the owner's own, and reports
            # the unknown ones.
            rest = {key: item for key, item in mapping.items() if key not in own}
            arguments[name] = self._decode_variant(hints[name], rest, path, own)
        if not flattened:
            self._refuse_unknown(mapping, own, path, sibling_keys)
        for name in own:
            if name in mapping:
                arguments[name] = self._decode(hints[name], mapping[name], join(path, name))
            elif is_required(fields[name]):
                required = describe_type(hints[name])
                raise self._error(join(path, name), f"is missing: set it to {required}")
        return kind(**arguments)

    def _require_mapping(self, kind: Any, value: object, path: str) -> Mapping[object, object]:
        if not isinstance(value, Mapping):
            raise self._type_error(kind, value, path)
        return cast("Mapping[object, object]", value)

    def _refuse_unknown(
        self,
        mapping: Mapping[object, object],
        own: tuple[str, ...],
        path: str,
        sibling_keys: tuple[str, ...],
    ) -> None:
        known = (*own, *sibling_keys)
        for key in mapping:
            if key in own:
                continue
            renamed = present_key(key, known)
            if renamed is not None:
                raise self._error(join(path, key), f"is now called {renamed}: rename it")
            # The key may belong to another section, as in `optim.micro_batch`. Its last part is
            # then right, so the hint names the nearest path, `train.micro_batch`, however little
            # the two texts resemble each other (cutoff 0).
            elsewhere = [p for p in key_paths(self._root) if p.split(".")[-1] == key]
            hint = did_you_mean(key, known) or did_you_mean(key, elsewhere, cutoff=0.0)
            hint = hint or f"; known here: {', '.join(known)}"
            raise self._error(join(path, key), f"is not a known key{hint}")


def is_flattened(field: dataclasses.Field[Any]) -> bool:
    """Whether a field's keys are written among those of its owner."""
    return field.metadata.get("flattened", False)


def is_required(field: dataclasses.Field[Any]) -> bool:
    """Whether a field has no default."""
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


def key_paths(kind: Any, path: str = "") -> list[str]:
    """Return the dotted paths of all keys of a dataclass and of its sections.

    Keys of variants are not included, because they depend on a value.
    """
    paths: list[str] = []
    for name, hint in typing.get_type_hints(kind).items():
        # Type hints include class variables, which are no keys.
        if typing.get_origin(hint) is typing.ClassVar:
            continue
        paths.append(join(path, name))
        if dataclasses.is_dataclass(hint):
            paths += key_paths(hint, join(path, name))
    return paths


def to_dict(value: Any) -> Any:
    """Return the mappings, lists and scalars that `DataclassDecoder` decodes to an equal value."""
    if isinstance(value, tuple):
        return [to_dict(item) for item in cast("tuple[object, ...]", value)]
    if not dataclasses.is_dataclass(value):
        return value
    plain: dict[str, Any] = {}
    if hasattr(value, DISCRIMINATOR):
        plain[DISCRIMINATOR] = getattr(value, DISCRIMINATOR)
    for field in dataclasses.fields(value):
        item = to_dict(getattr(value, field.name))
        plain |= item if is_flattened(field) else {field.name: item}
    return plain
