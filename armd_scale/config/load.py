"""Read recipes: YAML files that may extend one another, and `section.key=value` overrides."""

from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any, cast

import yaml

from armd_scale.config.codec import DataclassDecoder, to_dict
from armd_scale.config.messages import format_value, join
from armd_scale.config.recipe_paths import PathExpander
from armd_scale.config.rules import check as rules
from armd_scale.config.schema import Recipe
from armd_scale.config.yaml_source import RecipeSource
from armd_scale.errors import RecipeError
from armd_scale.order.policies import POLICIES, OrderPolicy

EXTENDS = "extends"
RECIPE_FILE = "recipe.yaml"
"""Name of the recipe in a checkpoint, and in the folder of a run."""
HERE = "."
"""Value of `model.init_from` that stands for the folder of the recipe file."""
# A recipe with every key has about 150 values and 4 levels, and besides the names of its shards,
# of which there may be thousands. These limits stop a small file from
# growing without end through aliases, and from exhausting the stack.
_MAX_BYTES, _MAX_VALUES, _MAX_DEPTH, _MAX_EXTENDS = 1 << 22, 100_000, 50, 32
_MAX_BITS = 1000
# A model section with one of these describes a network.
_NETWORK_KEYS = frozenset(("layers", "hidden", "ffn_hidden", "heads"))


def load_recipe(
    path: Path | str, overrides: Sequence[str] = (), *, expand_paths: bool = True
) -> Recipe:
    """Read a recipe, apply overrides, expand its paths and check all rules.

    Args:
        path: the YAML file; its `extends` names another one, relative to its own folder.
        overrides: texts `section.key=value`, applied in turn; values are YAML.
        expand_paths: expand `~`, environment variables and patterns. False for the recipe that a
            run has recorded, which is expanded, and whose files may be on another machine.

    Raises:
        RecipeError: what is wrong, with the file and line, or the override, that it comes from.
    """
    document = _read_extended(Path(path))
    for override in overrides:
        _apply_override(document, override)

    def origin_of(key: str) -> str:
        return document.origin_of(key, str(path))

    if expand_paths:
        _take_model_section(document, origin_of)
    recipe = DataclassDecoder(Recipe, origin_of, {OrderPolicy: POLICIES}).decode(document.values)
    if expand_paths:
        recipe = PathExpander(origin_of).expand(recipe)
    try:
        rules.check(recipe)
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from None
    return recipe


def dump_recipe(recipe: Recipe) -> str:
    """Return YAML with every key, defaults included, that loads back as an equal recipe."""
    # Without allow_unicode: with it PyYAML writes U+0085 unescaped, and reads it as a line break.
    return yaml.dump(to_dict(recipe), Dumper=_Dumper, sort_keys=False)


class _Dumper(yaml.SafeDumper):
    """Writes lists of plain values on one line, and everything else in blocks."""

    def represent_sequence(
        self, tag: str, sequence: Any, flow_style: bool | None = None
    ) -> yaml.SequenceNode:
        nested = any(isinstance(item, dict | list) for item in sequence)
        return super().represent_sequence(tag, sequence, flow_style=not nested)


def _read_extended(path: Path, *, extended_by: tuple[Path, ...] = ()) -> RecipeSource:
    if len(extended_by) > _MAX_EXTENDS:
        raise RecipeError(f"{path}: recipes must extend each other at most {_MAX_EXTENDS} times")
    if path.resolve() in extended_by:
        raise RecipeError(
            f"{path}: extends itself through {extended_by[-1]}: remove one of the extends"
        )
    document = _read_file(path)
    origin = document.origin_of(EXTENDS, str(path))
    base_name = document.values.pop(EXTENDS, None)
    if base_name is None:
        return document
    if not isinstance(base_name, str):
        raise RecipeError(
            f"{origin}: {EXTENDS} must be one file name (got {format_value(base_name)})"
        )
    base_path = path.parent / PathExpander(lambda _: origin).path(EXTENDS, base_name)
    if not base_path.is_file():
        raise RecipeError(f"{origin}: {EXTENDS} must name a recipe, but {base_path} does not exist")
    base = _read_extended(base_path, extended_by=(*extended_by, path.resolve()))
    base.merge_from(document)
    return base


def _read_file(path: Path) -> RecipeSource:
    try:
        # Of a device, a pipe or a huge file no more than this is read.
        if path.exists() and not path.is_file():
            raise RecipeError(f"{path}: a recipe must be a file, not a folder, a pipe or a device")
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise RecipeError(f"{path}: a recipe must have at most {_MAX_BYTES} bytes")
        text = data.decode("utf-8")
    except OSError as error:
        raise RecipeError(f"{path}: cannot read the recipe: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: a recipe must be UTF-8 text ({error.reason})") from None
    values, origins = _Parser(text, str(path)).parse()
    if not isinstance(values, dict | None):
        raise RecipeError(
            f"{path}: a recipe must be a mapping of sections (got {format_value(values)})"
        )
    source = RecipeSource(values=cast(dict[Any, Any], values or {}), origins=origins)
    model = source.values.get("model")
    if isinstance(model, dict) and cast(dict[Any, Any], model).get("init_from") == HERE:
        model["init_from"] = str(path.parent)
    return source


def _take_model_section(document: RecipeSource, origin_of: Callable[[str], str]) -> None:
    """Base a model section that says only what to start from on that of the checkpoint.

    Other keys of the section, such as dropout, replace those of the checkpoint.
    """
    section: Any = document.values.get("model")
    start = cast(dict[Any, Any], section).get("init_from") if isinstance(section, dict) else None
    if not isinstance(start, str) or _NETWORK_KEYS & section.keys():
        return
    folder = Path(PathExpander(origin_of).path("model.init_from", start))
    # A checkpoint and the folder of a run have one, and a folder of checkpoints lies in the latter.
    folders = (folder, folder.parent) if folder.name == "checkpoints" else (folder,)
    path = next((f / RECIPE_FILE for f in folders if (f / RECIPE_FILE).is_file()), None)
    if path is None:
        raise RecipeError(
            f"{origin_of('model.init_from')}: model.init_from must name a checkpoint with a "
            f"{RECIPE_FILE}, whose model the recipe takes over ({folder} has none): give another "
            "one, or describe the model"
        )
    base: Any = _read_extended(path).values.get("model")
    if isinstance(base, dict):
        document.values["model"] = {**cast(dict[Any, Any], base), **section}


def _apply_override(document: RecipeSource, override: str) -> None:
    # Split at the first `=` only: a value may contain more of them.
    path, equals, text = override.partition("=")
    source = f"override {override}"
    if not equals or not all(path.split(".")):
        raise RecipeError(f"{source}: an override must be written section.key=value")
    value, _ = _Parser(text, source).parse()
    try:
        document.override(path, value, source)
    except RecipeError as error:
        raise RecipeError(f"{source}: {error}") from None


class _Parser:
    """Parses one YAML text into plain values and the line of each.

    PyYAML's own constructor silently keeps the last of two equal keys and drops line numbers. This
    one walks the nodes itself, refuses repeated keys and records where every value was written.
    """

    def __init__(self, text: str, source: str) -> None:
        self._text = text
        self._source = source
        self._origins: dict[str, str] = {}
        self._num_values = 0

    def parse(self) -> tuple[Any, dict[str, str]]:
        """Return the values, and a mapping from each dotted path to `source:line`."""
        try:
            # Any, because the stubs of PyYAML leave the parameter of construct_object untyped.
            self._loader: Any = yaml.SafeLoader(self._text)
            node = self._loader.get_single_node()
            values = None if node is None else self._build(node, "", ())
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            origin = f"{self._source}:{mark.line + 1}" if mark else self._source
            raise RecipeError(f"{origin}: invalid YAML: {error.problem}") from None
        except RecursionError:
            raise RecipeError(
                f"{self._source}: a recipe must have at most {_MAX_DEPTH} levels"
            ) from None
        except (yaml.YAMLError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise RecipeError(f"{self._source}: invalid YAML: {reason}") from None
        return values, self._origins

    def _build(self, node: yaml.Node, path: str, parents: tuple[yaml.Node, ...]) -> Any:
        origin = f"{self._source}:{node.start_mark.line + 1}"
        self._num_values += 1
        if self._num_values > _MAX_VALUES or len(parents) > _MAX_DEPTH:
            raise RecipeError(
                f"{origin}: a recipe must have at most {_MAX_VALUES:,} values in {_MAX_DEPTH} "
                "levels: write fewer aliases and brackets"
            )
        # An alias inside the value that it points to: `a: &x {b: *x}`.
        if node in parents:
            raise RecipeError(
                f"{origin}: {path} contains itself: write the value out instead of an alias"
            )
        # For list items and the whole file. A mapping's value keeps the line of its key, which was
        # entered before: an alias would point to the line of its anchor, and a block starts one
        # below.
        self._origins.setdefault(path, origin)
        parents = (*parents, node)
        if isinstance(node, yaml.MappingNode):
            return self._build_mapping(node, path, parents)
        if isinstance(node, yaml.SequenceNode):
            return [self._build(item, join(path, i), parents) for i, item in enumerate(node.value)]
        return self._construct_scalar(node, path)

    def _construct_scalar(self, node: yaml.Node, path: str) -> Any:
        origin = f"{self._source}:{node.start_mark.line + 1}"
        tag = node.tag.removeprefix("tag:yaml.org,2002:")
        try:
            value = self._loader.construct_object(node)
        # What PyYAML raises for `!!bool x` and `!!timestamp x`.
        except (KeyError, AttributeError):
            raise RecipeError(
                f"{origin}: {path or 'a value'} must be a value of its tag {tag} (got "
                f"{format_value(node.value)}): leave out the tag"
            ) from None
        if not isinstance(value, Hashable):
            raise RecipeError(
                f"{origin}: {path or 'a value'} must not have the tag {tag}: leave out the tag"
            )
        # Python refuses to print such a number, and nothing here counts that far.
        if isinstance(value, int) and value.bit_length() > _MAX_BITS:
            raise RecipeError(f"{origin}: {path or 'a value'} has too many digits: write fewer")
        return value

    def _build_mapping(
        self, node: yaml.MappingNode, path: str, parents: tuple[yaml.Node, ...]
    ) -> dict[Any, Any]:
        values: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            origin = f"{self._source}:{key_node.start_mark.line + 1}"
            if not isinstance(key_node, yaml.ScalarNode):
                raise RecipeError(f"{origin}: a key in {path or 'a recipe'} must be a plain value")
            key = self._construct_scalar(key_node, path)
            key_path = join(path, key)
            if key in values:
                first = self._origins[key_path]
                raise RecipeError(
                    f"{origin}: {key_path} is written twice, first at {first}: keep one"
                )
            self._origins[key_path] = origin
            values[key] = self._build(value_node, key_path, parents)
        return values
