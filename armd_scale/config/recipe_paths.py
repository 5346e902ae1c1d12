"""Expand the paths of a recipe: `~`, environment variables, and `*` in data.train."""

import dataclasses
import glob
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from armd_scale.config.messages import format_value, join
from armd_scale.config.schema import BlendSource, Recipe
from armd_scale.errors import RecipeError
from armd_scale.paths import expand_path

_PATH_KEYS = (
    "run.folder",
    "data.valid",
    "model.init_from",
    "train.distillation.checkpoint",
    "checkpoint.resume",  # `auto` and `never` have nothing to expand
)


class PathExpander:
    """Expands the paths of one recipe.

    Args:
        origin_of: from a dotted key to where it was written, such as `recipes/a.yaml:7`.
    """

    def __init__(self, origin_of: Callable[[str], str]) -> None:
        self._origin_of = origin_of

    def expand(self, recipe: Recipe) -> Recipe:
        """Return the recipe with all its paths expanded.

        The matches of a pattern are sorted, and recorded with the recipe: the order of samples
        follows from it.

        Raises:
            RecipeError: a variable is not set, or nothing matches a pattern.
        """
        for key in _PATH_KEYS:
            recipe = _replace_at(recipe, key.split("."), lambda text, key=key: self.path(key, text))
        train = self._expand_train(recipe.data.train, recipe.data.valid)
        return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, train=train))

    def path(self, key: str, text: str) -> str:
        """Return one path, expanded.

        Args:
            key: its key, for the message.
            text: the path as written.

        Raises:
            RecipeError: a variable is not set.
        """
        try:
            return expand_path(text)
        except ValueError as error:
            raise RecipeError(f"{self._origin_of(key)}: {key} {error}") from None

    def _expand_train(
        self, train: str | tuple[BlendSource, ...], valid: str | None
    ) -> str | tuple[BlendSource, ...]:
        if isinstance(train, str):
            prefixes = self._matches("data.train", train, valid)
            # All of them are one source, of which any weight is the whole.
            return prefixes[0] if len(prefixes) == 1 else (BlendSource(path=prefixes, weight=1.0),)
        sources: list[BlendSource] = []
        for index, source in enumerate(train):
            key = f"data.train.{index}.path"
            if isinstance(source.path, str):
                found = self._matches(key, source.path, valid)
                path = found[0] if len(found) == 1 else found
            else:
                path = tuple(
                    prefix
                    for position, text in enumerate(source.path)
                    for prefix in self._matches(join(key, position), text, valid)
                )
            sources.append(dataclasses.replace(source, path=path))
        return tuple(sources)

    def _matches(self, key: str, text: str, valid: str | None) -> tuple[str, ...]:
        """Return the prefixes that a text stands for: itself, or the matches of its pattern."""
        pattern = self.path(key, text)
        # A name may have a star in it as well.
        if "*" not in pattern or Path(f"{pattern}.idx").exists():
            return (pattern,)
        found = glob.glob(f"{pattern}.idx", recursive=True)  # noqa: PTH207 - keeps `./` and links
        prefixes = tuple(sorted(path.removesuffix(".idx") for path in found))
        if not prefixes:
            raise self._error(
                key,
                f"must match at least one dataset (got {format_value(text)}, and there is no "
                f"{pattern}.idx): fix the pattern, or build the shards with tools/preprocess.py",
            )
        same_as_valid = [
            prefix for prefix in prefixes if valid is not None and _same_path(prefix, valid)
        ]
        if same_as_valid:
            raise self._error(
                key,
                f"must not match the validation data (got {format_value(text)}, which matches "
                f"data.valid={same_as_valid[0]}): write a narrower pattern",
            )
        return prefixes

    def _error(self, key: str, problem: str) -> RecipeError:
        return RecipeError(f"{self._origin_of(key)}: {key} {problem}")


def _same_path(first: str, second: str) -> bool:
    return Path(first).absolute().resolve() == Path(second).absolute().resolve()


def _replace_at(section: Any, keys: Sequence[str], change: Callable[[str], str]) -> Any:
    """Return a dataclass with the text at a path of keys changed; null stays null."""
    key, *rest = keys
    value = getattr(section, key)
    if value is None:
        return section
    new = _replace_at(value, rest, change) if rest else change(value)
    return dataclasses.replace(section, **{key: new})
