"""Open values of a recipe, filled in once: what each default is, and that nothing stays open."""

from dataclasses import fields, replace
from pathlib import Path

import pytest

from armd_scale.config.load import dump_recipe, load_recipe
from armd_scale.config.resolve import ResolvedRecipe, resolve, resolve_max_positions, resolve_model
from armd_scale.config.schema import ModelConfig, OptimConfig
from armd_scale.errors import RecipeError
from tests.support.recipes import SMALL, bend

OPEN = {"model.kv_heads": None, "model.vocab_size": None}


def test_open_model_sizes_follow_from_the_others() -> None:
    model = resolve(bend(SMALL, OPEN | {"model.layers": 5}), vocab_size=101).model
    sizes = (model.head_dim, model.kv_heads, model.two_stream_layers, model.vocab_size)
    assert sizes == (8, 4, 2, 101)


def test_sizes_that_the_recipe_sets_are_kept() -> None:
    sizes = {"head_dim": 6, "kv_heads": 1, "two_stream_layers": 0, "vocab_size": 70}
    recipe = bend(SMALL, {f"model.{key}": value for key, value in sizes.items()})
    model = resolve(recipe, vocab_size=101).model
    assert {key: getattr(model, key) for key in sizes} == sizes


@pytest.mark.parametrize(
    "table", [{"model.query": "prefix"}, {"model.position_embedding": "learned_absolute"}]
)
def test_position_tables_have_a_row_for_every_token_of_a_window(table: dict[str, str]) -> None:
    model = resolve(bend(SMALL, table), vocab_size=101).model
    assert (model.max_positions, model.position_table_rows) == (65, 65)
    longer = resolve(bend(SMALL, table | {"model.max_positions": 80}), vocab_size=101).model
    assert longer.position_table_rows == 80


def test_rotary_positions_have_no_limit_unless_the_recipe_sets_one() -> None:
    model = resolve(SMALL, vocab_size=101).model
    assert (model.max_positions, model.position_table_rows) == (None, 0)
    limited = resolve(bend(SMALL, {"model.max_positions": 80}), vocab_size=101).model
    assert (limited.max_positions, limited.position_table_rows) == (80, 0)


def test_longest_text_is_one_window_unless_the_recipe_sets_it() -> None:
    assert resolve_max_positions(SMALL) == 65
    assert resolve_max_positions(bend(SMALL, {"model.max_positions": 80})) == 80


def test_decay_is_a_tenth_of_the_run_unless_set_and_zero_without_wsd() -> None:
    def decay_steps(optim: OptimConfig, steps: int = 100) -> int:
        recipe = bend(SMALL, {"optim": optim, "train.steps": steps})
        return resolve(recipe, vocab_size=101).optim.decay_steps

    optim = OptimConfig(warmup_steps=0, schedule="wsd")
    assert decay_steps(optim) == 10
    assert decay_steps(replace(optim, decay_steps=7)) == 7
    assert decay_steps(optim, steps=3) == 1
    assert decay_steps(OptimConfig(warmup_steps=0, schedule="cosine")) == 0


@pytest.mark.parametrize("schedule", ["cosine", "constant", "wsd"])
@pytest.mark.parametrize("query", ["anchor", "prefix"])
def test_a_resolved_recipe_survives_its_file(tmp_path: Path, schedule: str, query: str) -> None:
    recipe = bend(SMALL, {"optim.schedule": schedule, "model.query": query})
    resolved = resolve(recipe, vocab_size=101)
    (tmp_path / "recipe.yaml").write_text(dump_recipe(resolved))
    assert resolve(load_recipe(tmp_path / "recipe.yaml")) == resolved


def test_resolving_again_changes_nothing() -> None:
    resolved = resolve(SMALL, vocab_size=101)
    assert resolve(resolved, vocab_size=7) == resolved


def test_a_resolved_recipe_stays_resolved_when_a_section_is_replaced() -> None:
    resolved = resolve(SMALL, vocab_size=101)
    changed = replace(resolved, optim=replace(resolved.optim, zero_stage=3))
    assert isinstance(changed, ResolvedRecipe)
    assert changed.optim.decay_steps == resolved.optim.decay_steps


def test_only_the_missing_limit_of_rotary_positions_is_left_open() -> None:
    model = resolve(SMALL, vocab_size=101).model
    optional = {"max_positions", "rope_scaling", "init_from"}
    assert {f.name for f in fields(model) if getattr(model, f.name) is None} == optional


def test_an_unknown_vocabulary_is_an_error() -> None:
    with pytest.raises(RecipeError, match=r"model\.vocab_size must be a whole number"):
        resolve(SMALL)


def test_an_unknown_number_of_positions_is_an_error_only_with_a_table() -> None:
    model = ModelConfig(layers=2, hidden=32, ffn_hidden=64, heads=4, vocab_size=100)
    assert resolve_model(model).max_positions is None
    with pytest.raises(RecipeError, match=r"model\.max_positions must be a whole number"):
        resolve_model(replace(model, query="prefix"))
