"""YAML to `Recipe`: a file may extend another one, and `section.key=value` overrides both."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from armd_scale.config.codec import DataclassDecoder, to_dict
from armd_scale.config.messages import format_value, join
from armd_scale.config.rules import check as rules
from armd_scale.config.schema import Recipe
from armd_scale.config.yaml_source import RecipeSource
from armd_scale.errors import RecipeError

EXTENDS = "extends"


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """Reads, completes and checks a recipe.

    Args:
        path: the YAML file; its `extends` names another one, relative to its own folder.
        overrides: `section.key=value` each, applied in turn; values are YAML.

    Raises:
        RecipeError: what is wrong, with the file and line, or the override, that says so.
    """
    document = _read_extended(Path(path))
    for override in overrides:
        _apply_override(document, override)
    reader = DataclassDecoder(Recipe, lambda key: document.origin_of(key, str(path)))
    recipe = reader.decode(document.values)
    try:
        rules.check(recipe)
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from None
    return recipe


def recipe_from_mapping(mapping: Mapping[str, Any], *, source: str) -> Recipe:
    """A recipe from plain data, such as a run's resolved copy; types are checked, rules are not.

    Args:
        mapping: sections by name.
        source: what errors call the mapping, such as its file.

    Raises:
        RecipeError: unknown or missing key, or a value of another type.
    """
    return DataclassDecoder(Recipe, lambda _: source).decode(mapping)


def dump_recipe(recipe: Recipe) -> str:
    """YAML with every key, defaults included, that loads back as an equal recipe."""
    # Not allow_unicode: PyYAML then writes U+0085 bare and reads it back as a line break.
    return yaml.dump(to_dict(recipe), Dumper=_Dumper, sort_keys=False)


class _Dumper(yaml.SafeDumper):
    """Lists of plain values on one line, everything else in blocks."""

    def represent_sequence(
        self, tag: str, sequence: Any, flow_style: bool | None = None
    ) -> yaml.SequenceNode:
        nested = any(isinstance(item, dict | list) for item in sequence)
        return super().represent_sequence(tag, sequence, flow_style=not nested)


def _read_extended(path: Path, *, below: tuple[Path, ...] = ()) -> RecipeSource:
    if path.resolve() in below:
        raise RecipeError(f"{path}: extends itself by way of {below[-1]}; break the circle")
    document = _read_file(path)
    where = document.origin_of(EXTENDS, str(path))
    base_name = document.values.pop(EXTENDS, None)
    if base_name is None:
        return document
    if not isinstance(base_name, str):
        raise RecipeError(
            f"{where}: {EXTENDS} must be one file name, got {format_value(base_name)}"
        )
    base_path = path.parent / base_name
    if not base_path.is_file():
        raise RecipeError(f"{where}: {EXTENDS} must name a recipe, but {base_path} is no file")
    base = _read_extended(base_path, below=(*below, path.resolve()))
    base.merge_from(document)
    return base


def _read_file(path: Path) -> RecipeSource:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"{path}: the recipe cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: a recipe must be UTF-8 text; {error.reason}") from None
    values, origins = _Parser(text, str(path)).parse()
    if not isinstance(values, dict | None):
        raise RecipeError(
            f"{path}: a recipe must be a mapping of sections, got {format_value(values)}"
        )
    return RecipeSource(values=values or {}, origins=origins)


def _apply_override(document: RecipeSource, override: str) -> None:
    path, equals, text = override.partition("=")
    source = f"override {override}"
    if not equals or not all(path.split(".")):
        raise RecipeError(f"{source}: an override must read section.key=value")
    value, _ = _Parser(text, source).parse()
    try:
        document.override(path, value, source)
    except RecipeError as error:
        raise RecipeError(f"{source}: {error}") from None


class _Parser:
    """One YAML text to plain values and the line of each.

    PyYAML's own constructor keeps the last of two equal keys and forgets lines; this does neither.
    """

    def __init__(self, text: str, source: str) -> None:
        self._text = text
        self._source = source
        self._origins: dict[str, str] = {}

    def parse(self) -> tuple[Any, dict[str, str]]:
        """The values, and from each dotted path to `source:line`."""
        try:
            self._loader = yaml.SafeLoader(self._text)
            node = self._loader.get_single_node()
            values = None if node is None else self._build(node, "", ())
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            place = f"{self._source}:{mark.line + 1}" if mark else self._source
            raise RecipeError(f"{place}: this is not YAML: {error.problem}") from None
        except (yaml.YAMLError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise RecipeError(f"{self._source}: this is not YAML: {reason}") from None
        return values, self._origins

    def _build(self, node: yaml.Node, path: str, outer: tuple[yaml.Node, ...]) -> Any:
        place = f"{self._source}:{node.start_mark.line + 1}"
        if node in outer:
            raise RecipeError(f"{place}: {path} contains itself; write it out")
        self._origins.setdefault(path, place)
        outer = (*outer, node)
        if isinstance(node, yaml.MappingNode):
            return self._build_mapping(node, path, outer)
        if isinstance(node, yaml.SequenceNode):
            return [self._build(item, join(path, i), outer) for i, item in enumerate(node.value)]
        return self._loader.construct_object(node)

    def _build_mapping(
        self, node: yaml.MappingNode, path: str, outer: tuple[yaml.Node, ...]
    ) -> dict[Any, Any]:
        values: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            place = f"{self._source}:{key_node.start_mark.line + 1}"
            if not isinstance(key_node, yaml.ScalarNode):
                raise RecipeError(f"{place}: a key in {path or 'a recipe'} must be plain text")
            key = self._loader.construct_object(key_node)
            key_path = join(path, key)
            if key in values:
                first = self._origins[key_path]
                raise RecipeError(f"{place}: {key_path} is given twice, first at {first}; keep one")
            self._origins[key_path] = place
            values[key] = self._build(value_node, key_path, outer)
        return values
