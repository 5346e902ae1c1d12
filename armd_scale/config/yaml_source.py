"""A recipe before decoding: plain values with their origins, merged from files and overrides."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from armd_scale.config.messages import format_value, join
from armd_scale.errors import RecipeError

# Policies have different keys, so merging two orders would keep keys of the wrong policy.
NON_MERGED_SECTIONS = frozenset({"order"})


@dataclass(kw_only=True)
class RecipeSource:
    """Sections of a recipe, from one file or merged from several."""

    values: dict[Any, Any]
    """Sections by name, as parsed from YAML."""
    origins: dict[str, str]
    """From a dotted path to where it was written, such as `recipes/a.yaml:7`."""

    def origin_of(self, path: str, default: str) -> str:
        """Return where a path, or else the nearest mapping around it, was written."""
        while path:
            if path in self.origins:
                return self.origins[path]
            path = path.rpartition(".")[0]
        return default

    def merge_from(self, upper: "RecipeSource") -> None:
        """Merge the values of `upper` into this source; what is not a mapping is replaced."""
        for key, value in upper.values.items():
            self._put(self.values, "", key, value, upper.origins)

    def override(self, path: str, value: object, source: str) -> None:
        """Set one value at a dotted path; list items are named by their index.

        Args:
            path: dotted path, such as `order.stages.0.until_step`.
            value: the value to set.
            source: where it was written, for errors.

        Raises:
            RecipeError: the path leads through a list without that index, or through a plain value.
        """
        container: Any = self.values
        *parents, last = path.split(".")
        for depth, key in enumerate(parents):
            container = self._get_or_create(container, key, ".".join(parents[:depth]), source)
        parent = ".".join(parents)
        is_list = isinstance(container, list)
        key = _index(cast(list[Any], container), last, parent) if is_list else last
        if not isinstance(container, dict | list):
            raise RecipeError(
                f"{path} cannot be set, because {parent} is {format_value(container)}"
            )
        self._put(container, parent, key, value, {path: source})

    def _put(
        self, container: Any, parent: str, key: Any, value: object, origins: Mapping[str, str]
    ) -> None:
        path = join(parent, key)
        is_mapping = isinstance(container, dict)
        old: Any = cast(dict[Any, Any], container).get(key) if is_mapping else container[key]
        merged = path.split(".")[0] not in NON_MERGED_SECTIONS
        if merged and isinstance(old, dict) and isinstance(value, dict):
            for inner_key, item in cast(dict[Any, Any], value).items():
                self._put(old, path, inner_key, item, origins)
            return
        container[key] = value
        # Origins below `path` belong to the value that was replaced; keeping them would make an
        # error name a line that no longer has an effect.
        self.origins = {
            **{at: origin for at, origin in self.origins.items() if not _is_within(at, path)},
            **{at: origin for at, origin in origins.items() if _is_within(at, path)},
        }

    def _get_or_create(self, container: Any, key: str, path: str, source: str) -> Any:
        """Return the value at `key`, a new mapping if there is none."""
        inner = join(path, key)
        if isinstance(container, list):
            items = cast(list[Any], container)
            return items[_index(items, key, path)]
        if not isinstance(container, dict):
            raise RecipeError(f"{inner} cannot be set, because {path} is {format_value(container)}")
        mapping = cast(dict[Any, Any], container)
        # Also for a section that is written but empty, which YAML reads as null.
        if mapping.get(key) is None:
            mapping[key] = {}
            self.origins[inner] = source
        return mapping[key]


def _is_within(path: str, outer: str) -> bool:
    return path == outer or path.startswith(f"{outer}.")


def _index(items: list[Any], key: str, path: str) -> int:
    if not (key.isascii() and key.isdigit() and int(key) < len(items)):
        raise RecipeError(
            f"{path} has {len(items)} items, and the index must be below that (got {key})"
        )
    return int(key)
