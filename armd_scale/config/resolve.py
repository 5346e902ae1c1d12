"""Fill in every value that a recipe leaves open, once, before anything is built from it.

A recipe may leave sizes open (null) that follow from others: the key/value heads, the width of a
head, the vocabulary of the training shards. `resolve` replaces each of them by its number.
Everything behind it takes the `Resolved...` types below, in which no such field can be None, so
that a default is computed in one place only. They are subclasses of the recipe's own types:
whatever reads a `Recipe` reads a `ResolvedRecipe`.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from armd_scale.config.schema import ModelConfig, OptimConfig, Recipe, TrainConfig
from armd_scale.errors import RecipeError


# `field()` without a default makes a field required, although the overridden one has a default.
@dataclass(frozen=True, kw_only=True)
class ResolvedModel(ModelConfig):
    """The model section with all sizes known."""

    kv_heads: int = field()
    head_dim: int = field()
    vocab_size: int = field()
    two_stream_layers: int = field()
    max_positions: int | None = field()
    """Longest text in tokens; None, no limit, only where positions have no table."""

    @property
    def position_table_rows(self) -> int:
        """Rows of the tables of positions, learned absolute or prefix; 0 without such a table."""
        if not self.has_position_table:
            return 0
        assert self.max_positions is not None, "resolve_model fills it in for every table"
        return self.max_positions


@dataclass(frozen=True, kw_only=True)
class ResolvedOptim(OptimConfig):
    """The optimizer section with the length of the final decay known."""

    decay_steps: int = field()
    """Steps of the final decay of `wsd`; 0 under every other schedule."""


@dataclass(frozen=True, kw_only=True)
class ResolvedRecipe(Recipe):
    """A recipe with all sizes known; `train.recompute: auto` is left to `plan.recompute`."""

    model: ResolvedModel
    optim: ResolvedOptim


def resolve(recipe: Recipe, *, vocab_size: int | None = None) -> ResolvedRecipe:
    """Fill in every value that the recipe leaves open; a resolved recipe comes back equal.

    Args:
        recipe: a recipe that passed `rules.check`.
        vocab_size: number of tokens of the training data, used where `model.vocab_size` is null.

    Raises:
        RecipeError: neither the recipe nor the caller knows the vocabulary size.
    """
    model = resolve_model(
        recipe.model, vocab_size=vocab_size, max_positions=resolve_max_positions(recipe)
    )
    decay_steps = resolve_decay_steps(recipe.optim, recipe.train)
    optim = ResolvedOptim(**_fields(recipe.optim, decay_steps=decay_steps))
    return ResolvedRecipe(**_fields(recipe, model=model, optim=optim))


def resolve_model(
    model: ModelConfig, *, vocab_size: int | None = None, max_positions: int | None = None
) -> ResolvedModel:
    """Fill in the sizes that a model section leaves open.

    Args:
        model: a model section that passed the rules.
        vocab_size: number of tokens, used where the section leaves it open.
        max_positions: rows of position tables, used where the section has such a table and leaves
            their number open.

    Raises:
        RecipeError: a size that neither the section nor the caller gives.
    """
    sizes = {
        "kv_heads": resolve_kv_heads(model),
        "head_dim": resolve_head_dim(model),
        "two_stream_layers": resolve_two_stream_layers(model),
        "vocab_size": vocab_size if model.vocab_size is None else model.vocab_size,
        "max_positions": model.max_positions,
    }
    # Rotary positions need no table, so there an open limit stays open (None: no limit).
    if model.has_position_table and model.max_positions is None:
        sizes["max_positions"] = max_positions
    for name, value in sizes.items():
        if value is None and (name != "max_positions" or model.has_position_table):
            raise RecipeError(f"model.{name} must be a whole number (got null): set it")
    return ResolvedModel(**_fields(model, **sizes))


def resolve_head_dim(model: ModelConfig) -> int:
    """Width of an attention head: hidden / heads unless the recipe sets it."""
    return model.hidden // model.heads if model.head_dim is None else model.head_dim


def resolve_kv_heads(model: ModelConfig) -> int:
    """Number of key/value heads: one per query head unless the recipe sets it."""
    return model.heads if model.kv_heads is None else model.kv_heads


def resolve_two_stream_layers(model: ModelConfig) -> int:
    """Number of lower layers that run both streams: half of all unless the recipe sets it."""
    return model.layers // 2 if model.two_stream_layers is None else model.two_stream_layers


def resolve_max_positions(recipe: Recipe) -> int:
    """Longest text in tokens: one training window unless the recipe sets it."""
    length = recipe.model.max_positions
    return recipe.data.seq_length + 1 if length is None else length


def resolve_decay_steps(optim: OptimConfig, train: TrainConfig) -> int:
    """Steps of the final decay: under `wsd` a tenth of the run, at least 1, unless set; else 0."""
    if optim.schedule != "wsd":
        return 0
    return max(1, train.steps // 10) if optim.decay_steps is None else optim.decay_steps


def _fields(section: Any, **resolved: Any) -> dict[str, Any]:
    """The fields of a dataclass by name, with resolved values in place of open ones."""
    # Not dataclasses.asdict, which would turn nested sections into dictionaries.
    names = [item.name for item in dataclasses.fields(section)]
    return {name: getattr(section, name) for name in names} | resolved
