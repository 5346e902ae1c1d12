"""Reading recipes: layers, overrides, round trips, and every error with its sentence."""

from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from armd_scale.config.codec import DataclassDecoder, to_dict
from armd_scale.config.load import dump_recipe, load_recipe
from armd_scale.config.schema import BlendSource, Recipe, RopeScaling, WandbConfig
from armd_scale.errors import RecipeError
from armd_scale.order.policies import (
    POLICIES,
    LeftToRight,
    OrderPolicy,
    OrderStage,
    Progressive,
    RandomPermutation,
    Stages,
    Strided,
)
from tests.support.recipes import SMALL, SMALL_YAML, bend

STAGED = """\
extends: small.yaml
order:
  policy: stages
  stages:
    - {until_step: 1000, policy: l2r}
    - {policy: strided, streams: [2]}
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL_YAML)
    return path


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence.replace(f"{path.parent}/", "")


# --- what is read -------------------------------------------------------------------------------


def test_yaml_becomes_the_recipe_it_describes(small: Path) -> None:
    assert load_recipe(small) == SMALL
    assert load_recipe(str(small)) == SMALL


def test_numbers_without_a_dot_are_numbers(small: Path) -> None:
    recipe = load_recipe(small, ["optim.lr=3e-3", "optim.min_lr=0", "optim.betas=[0, 9e-1]"])
    assert (recipe.optim.lr, recipe.optim.min_lr, recipe.optim.betas) == (3e-3, 0.0, (0.0, 0.9))
    assert isinstance(recipe.optim.min_lr, float)


def test_parts_of_orders_are_written_flat(small: Path) -> None:
    path = write(small.parent, "staged.yaml", STAGED)
    assert load_recipe(path).order == Stages(
        stages=(
            OrderStage(until_step=1000, order=LeftToRight()),
            OrderStage(order=Strided(streams=(2,))),
        )
    )


def test_a_blend_and_a_nested_mapping(small: Path) -> None:
    frequencies = "low_freq_factor: 1, high_freq_factor: 4"
    scaling = f"{{factor: 8, {frequencies}, original_max_position_embeddings: 8192}}"
    recipe = load_recipe(
        small,
        [
            "data.train=[{path: a, weight: 3}, {path: b, weight: .5}]",
            f"model.rope_scaling={scaling}",
        ],
    )
    blend = (BlendSource(path="a", weight=3.0), BlendSource(path="b", weight=0.5))
    assert recipe.data.train == blend
    assert recipe.model.rope_scaling == RopeScaling(
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    )


# --- layers -------------------------------------------------------------------------------------


def test_a_file_changes_single_keys_of_the_one_it_extends(small: Path) -> None:
    middle = "extends: ../small.yaml\nmodel: {layers: 6}\ntrain: {steps: 50}\n"
    folder = small.parent / "more"
    folder.mkdir()
    write(folder, "middle.yaml", middle)
    path = write(folder, "top.yaml", "extends: middle.yaml\ntrain: {steps: 70}\n")
    assert load_recipe(path) == bend(SMALL, {"model.layers": 6, "train.steps": 70})


def test_an_order_replaces_the_one_it_extends_as_a_whole(small: Path) -> None:
    order = "order: {policy: progressive, ar_steps: 1, ramp_end: 2, rho: 3}\n"
    base = write(small.parent, "base.yaml", f"extends: small.yaml\n{order}")
    path = write(small.parent, "top.yaml", "extends: base.yaml\norder: {policy: random}\n")
    assert load_recipe(base).order == Progressive(ar_steps=1, ramp_end=2, rho=3)
    assert load_recipe(path).order == RandomPermutation()
    partial = write(small.parent, "partial.yaml", "extends: base.yaml\norder: {rho: 4}\n")
    assert refusal(partial).startswith(
        "partial.yaml:2: order.policy is missing: set it to one of l2r,"
    )


@pytest.mark.parametrize(
    ("override", "changes"),
    [
        ("model.layers=6", {"model.layers": 6}),
        ("model={layers: 6, qk_norm: head}", {"model.layers": 6, "model.qk_norm": "head"}),
        ("model.kv_heads=", {"model.kv_heads": None}),
        ("run.name=a=b", {"run.name": "a=b"}),
        ("parallel.tensor=2", {"parallel": replace(SMALL.parallel, tensor=2)}),
        ("log.wandb.mode=disabled", {"log.wandb": WandbConfig(mode="disabled")}),
        ("eval.orders=[l2r, strided-ar:2]", {"eval.orders": ("l2r", "strided-ar:2")}),
        ("order={policy: random}", {"order": RandomPermutation()}),
        ("order.policy=random", {"order": RandomPermutation()}),
    ],
)
def test_overrides(small: Path, override: str, changes: dict[str, Any]) -> None:
    assert load_recipe(small, [override]) == bend(SMALL, changes)


def test_overrides_reach_into_lists_and_the_last_one_wins(small: Path) -> None:
    path = write(small.parent, "staged.yaml", STAGED)
    recipe = load_recipe(path, ["order.stages.0.until_step=10", "order.stages.0.until_step=20"])
    assert isinstance(recipe.order, Stages)
    assert recipe.order.stages[0].until_step == 20
    recipe = load_recipe(path, ["order.stages.1={policy: random}"])
    assert isinstance(recipe.order, Stages)
    assert recipe.order.stages[1] == OrderStage(order=RandomPermutation())


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("model.heds=4", "model.heds is not a known key; did you mean heads?"),
        ("modle.heads=4", "modle is not a known key; did you mean model?"),
        ("lr=1", "lr is not a known key; did you mean optim.lr?"),
        ("train.lr=1", "train.lr is not a known key; did you mean optim.lr?"),
        ("log.wandb.mdoe=online", "log.wandb.mdoe is not a known key; did you mean mode?"),
        (
            "checkpoint.zzzz=1",
            "checkpoint.zzzz is not a known key; known here: every_steps, keep, keep_every, ",
        ),
        ("order.streams=[1]", "order.streams is not a known key; known here: policy"),
        ("order.0=1", "order.0 is not a known key; known here: policy"),
        ("model.layers=four", "model.layers must be a whole number (got 'four')"),
        ("model.layers=4.0", "model.layers must be a whole number (got 4.0)"),
        ("model.layers=true", "model.layers must be a whole number (got true)"),
        ("model.layers=", "model.layers must be a whole number (got null)"),
        ("model.layers=[4]", "model.layers must be a whole number (got [4])"),
        ("model.mlp_bias=1", "model.mlp_bias must be true or false (got 1)"),
        ("model.qk_norm=true", "model.qk_norm must be one of none, head, projection (got true)"),
        ("optim.lr=true", "optim.lr must be a number (got true)"),
        ("optim.lr=fast", "optim.lr must be a number (got 'fast')"),
        ("optim.lr=.nan", "optim.lr must be a number (got nan)"),
        ("optim.lr={a: 1}", "optim.lr must be a number (got a mapping)"),
        ("optim.ema_decay=x", "optim.ema_decay must be a number (got 'x')"),
        ("run.name=2024", "run.name must be text (got 2024); put it in quotes"),
        ("run.name=", "run.name must be text (got null)"),
        ("train.precision=fp16", "train.precision must be one of fp32, bf16 (got 'fp16'); did you"),
        ("optim.zero_stage=4", "optim.zero_stage must be one of 0, 1, 2, 3 (got 4)"),
        ("optim.zero_stage=true", "optim.zero_stage must be one of 0, 1, 2, 3 (got true)"),
        ("optim.betas=[0.9]", "optim.betas must be a list of 2, a number each (got [0.9])"),
        ("optim.betas=0.9", "optim.betas must be a list of 2, a number each (got 0.9)"),
        ("eval.orders=l2r", "eval.orders must be a list, text each (got 'l2r')"),
        ("eval.orders=[l2r, 2]", "eval.orders.1 must be text (got 2); put it in quotes"),
        (
            "data.train=3",
            "data.train must be text or a list, a mapping of path, weight each (got 3)",
        ),
        ("data.train=[{path: a}]", "data.train.0.weight is missing: set it to a number"),
        ("data=3", "data must be a mapping of train, valid, seq_length, packing, workers (got 3)"),
        (
            "model.rope_scaling=2",
            "model.rope_scaling must be a mapping of rope_type, factor, low_f",
        ),
        ("order=l2r", "order must be a mapping (got 'l2r')"),
        ("order={streams: [1]}", "order.policy is missing: set it to one of l2r, progressive,"),
        ("order={policy: stride}", "(got 'stride'); did you mean strided?"),
        ("order={policy: 3}", "order.policy must be one of l2r, progressive, strided, random,"),
        ("order={policy: groups}", "order.sizes is missing: set it to a list, a whole number each"),
        (
            "order={policy: stages, stages: [{untill: 1, policy: l2r}]}",
            "order.stages.0.untill is not a known key; did you mean until_step?",
        ),
        (
            "order={policy: mixture, components: [{policy: l2r}]}",
            "order.components.0.weight is missing: set it to a number",
        ),
    ],
)
def test_unknown_keys_and_wrong_types(small: Path, override: str, sentence: str) -> None:
    got = refusal(small, override)
    assert got.startswith(f"override {override}: ")
    assert sentence in got


def test_errors_name_the_file_and_line_that_is_wrong(small: Path) -> None:
    path = write(small.parent, "top.yaml", "extends: small.yaml\n\ntrain:\n  stepz: 5\n")
    expected = "top.yaml:4: train.stepz is not a known key; did you mean steps?"
    assert refusal(path) == expected
    small.write_text(SMALL_YAML.replace("heads: 4\n", "heads: many\n", 1))
    path.write_text("extends: small.yaml\n")
    assert refusal(path) == "small.yaml:8: model.heads must be a whole number (got 'many')"


def test_a_missing_section_or_key_is_named(small: Path) -> None:
    small.write_text(SMALL_YAML.replace("run: {name: small, folder: runs/small}\n", ""))
    sections = "a mapping of name, folder, seed"
    assert refusal(small) == f"small.yaml: run is missing: set it to {sections}"
    small.write_text(SMALL_YAML.replace("steps: 100, ", ""))
    assert refusal(small) == "small.yaml:11: train.steps is missing: set it to a whole number"


def test_broken_rules_name_the_file(small: Path) -> None:
    must = "train.global_batch must be a multiple of train.micro_batch = 3 (got 16)"
    assert refusal(small, "train.micro_batch=3").startswith(f"small.yaml: {must}")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "bad.yaml: run is missing"),
        ("- 1\n", "bad.yaml: a recipe must be a mapping of sections (got [1])"),
        ("run: [1\ntrain: {}\n", "bad.yaml:2: invalid YAML: "),
        ("run: {}\n---\nrun: {}\n", "bad.yaml:2: invalid YAML: but found another document"),
        ("run: \x00\n", "bad.yaml: invalid YAML: "),
        ("run: !!python/name:os.system\n", "bad.yaml:1: invalid YAML: "),
        ("run: 2024-13-45\n", "bad.yaml: invalid YAML: "),
        (
            "run:\n  name: a\n  name: b\n",
            "bad.yaml:3: run.name is written twice, first at bad.yaml:2",
        ),
        ("run: &a\n  name: *a\n", "bad.yaml:1: run.name contains itself"),
        ("run:\n  ? [a]\n  : b\n", "bad.yaml:2: a key in run must be a plain value"),
        ("5: {}\n", "bad.yaml:1: 5 is not a known key"),
        ("extends: 3\n", "bad.yaml:1: extends must be one file name (got 3)"),
        (
            "\nextends: none.yaml\n",
            "bad.yaml:2: extends must name a recipe, but none.yaml does not exist",
        ),
        ("extends: bad.yaml\n", "bad.yaml: extends itself through bad.yaml"),
    ],
)
def test_unreadable_yaml(tmp_path: Path, text: str, sentence: str) -> None:
    got = refusal(write(tmp_path, "bad.yaml", text)).replace(str(tmp_path) + "/", "")
    assert got.startswith(sentence)


def test_unreadable_files(tmp_path: Path) -> None:
    missing = tmp_path / "missing.yaml"
    assert refusal(missing) == "missing.yaml: cannot read the recipe: No such file or directory"
    missing.write_bytes(b"run: \xff\n")
    assert refusal(missing) == "missing.yaml: a recipe must be UTF-8 text (invalid start byte)"


def test_a_circle_of_files_is_found(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "extends: b.yaml\n")
    write(tmp_path, "b.yaml", "extends: a.yaml\n")
    assert "a.yaml: extends itself through" in refusal(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("model.layers", "an override must be written section.key=value"),
        ("=3", "an override must be written section.key=value"),
        ("model..layers=3", "an override must be written section.key=value"),
        ("model.layers=[3", "invalid YAML: "),
        ("model.layers.x=3", "model.layers.x cannot be set, because model.layers is 4"),
        ("model.layers.x.y=3", "model.layers.x cannot be set, because model.layers is 4"),
        ("eval.orders.1=l2r", "eval.orders has 1 items, and the index must be below that (got 1)"),
        (
            "eval.orders.first=l2r",
            "eval.orders has 1 items, and the index must be below that",
        ),
    ],
)
def test_overrides_that_lead_nowhere(small: Path, override: str, sentence: str) -> None:
    got = refusal(small, override)
    assert got.startswith(f"override {override}:")
    assert sentence in got


# --- round trips --------------------------------------------------------------------------------


def anything(hint: Any) -> st.SearchStrategy[Any]:
    """Whatever a type of the schema allows, rules or not."""
    arguments = get_args(hint)
    if hint is float:
        return st.floats(allow_nan=False, allow_infinity=False)
    if hint is str:
        return st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
    if get_origin(hint) in (Union, UnionType):
        return st.deferred(lambda: st.one_of([anything(member) for member in arguments]))
    if get_origin(hint) is tuple and Ellipsis in arguments:
        return st.lists(anything(arguments[0]), max_size=2).map(tuple)
    if get_origin(hint) is tuple:
        return st.tuples(*map(anything, arguments))
    if hint is OrderPolicy:
        return st.deferred(lambda: st.one_of([anything(policy) for policy in POLICIES]))
    if isinstance(hint, type) and is_dataclass(hint):
        hints = get_type_hints(hint)
        return st.builds(
            hint, **{field.name: anything(hints[field.name]) for field in fields(hint)}
        )
    return st.from_type(hint)


@settings(deadline=None)
@given(anything(Recipe))
@example(bend(SMALL, {"run.name": "\x85"}))
def test_a_dumped_recipe_loads_back_equal(recipe: Recipe) -> None:
    decoder = DataclassDecoder(Recipe, str, {OrderPolicy: POLICIES})
    assert decoder.decode(yaml.safe_load(dump_recipe(recipe))) == recipe


def test_the_resolved_copy_is_a_recipe_file_with_every_key(small: Path) -> None:
    text = dump_recipe(load_recipe(small))
    assert load_recipe(write(small.parent, "resolved.yaml", text)) == SMALL
    assert "  max_anchor_gap: 64\n" in text
    assert "  orders: [l2r]\n" in text
    assert text.startswith("run:\n  name: small\n")


def write_checkpoint_recipe(folder: Path) -> Recipe:
    """Write recipe.yaml as a checkpoint has it, with a network of its own."""
    folder.mkdir(parents=True)
    recipe = bend(SMALL, {"model.layers": 6, "model.dropout": 0.25, "model.vocab_size": 77})
    (folder / "recipe.yaml").write_text(dump_recipe(recipe))
    return recipe


@pytest.mark.parametrize("name", ["run/checkpoints/step_00000003", "run/checkpoints", "run"])
def test_a_recipe_takes_the_network_of_the_checkpoint_that_it_starts_from(tmp_path, name):
    """Where it has no model section but `init_from`; other keys of the section replace it."""
    other = write_checkpoint_recipe(tmp_path / "run" / "checkpoints" / "step_00000003")
    (tmp_path / "run" / "recipe.yaml").write_text(dump_recipe(other))
    values = yaml.safe_load(dump_recipe(SMALL))
    values["model"] = {"init_from": str(tmp_path / name), "dropout": 0.5}
    (tmp_path / "fine.yaml").write_text(yaml.safe_dump(values))
    model = load_recipe(tmp_path / "fine.yaml").model
    assert model == replace(other.model, init_from=str(tmp_path / name), dropout=0.5)
    values["model"] |= to_dict(SMALL.model) | {"init_from": str(tmp_path / name)}
    (tmp_path / "whole.yaml").write_text(yaml.safe_dump(values))
    assert load_recipe(tmp_path / "whole.yaml").model.layers == SMALL.model.layers


def test_a_network_is_taken_from_a_checkpoint_only(tmp_path):
    values = yaml.safe_load(dump_recipe(SMALL))
    values["model"] = {"init_from": str(tmp_path / "nothing")}
    (tmp_path / "fine.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(
        RecipeError, match=r"fine\.yaml:\d+: model\.init_from must name a checkpoint"
    ):
        load_recipe(tmp_path / "fine.yaml")
