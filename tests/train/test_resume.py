"""Which checkpoint a run starts from, and which ones are rejected."""

from pathlib import Path

import pytest
import torch
from megatron.core.process_groups_config import ProcessGroupCollection

from armd_scale.checkpoint.load import open_checkpoint
from armd_scale.config.resolve import ResolvedRecipe
from armd_scale.errors import CheckpointError, ShardError
from armd_scale.train.resume import (
    check_same_on_all_ranks,
    find_checkpoint,
    initial_checkpoint,
    latest_checkpoint_before,
    refuse_checkpoint_as_run_folder,
    set_aside_later_checkpoints,
)
from tests.support.checkpoints import save_network
from tests.support.networks import LLAMA
from tests.support.recipes import SMALL_RESOLVED, bend
from tests.support.spawn import run_on_ranks


@pytest.fixture
def recipe(tmp_path: Path) -> ResolvedRecipe:
    return bend(SMALL_RESOLVED, {"model": LLAMA, "run.folder": str(tmp_path / "run")})


def resuming(recipe: ResolvedRecipe, resume: str) -> ResolvedRecipe:
    return bend(recipe, {"checkpoint.resume": resume})


def test_auto_finds_the_newest_checkpoint_if_there_is_one(
    recipe: ResolvedRecipe, groups: ProcessGroupCollection
) -> None:
    assert find_checkpoint(recipe) is None
    save_network(recipe, groups, step=5)
    newest = save_network(recipe, groups, step=6)
    checkpoint = find_checkpoint(recipe)
    assert checkpoint is not None
    assert checkpoint.folder == newest


def test_a_path_selects_that_checkpoint(
    recipe: ResolvedRecipe, groups: ProcessGroupCollection
) -> None:
    older = save_network(recipe, groups, step=5)
    save_network(recipe, groups, step=6)
    checkpoint = find_checkpoint(resuming(recipe, str(older)))
    assert checkpoint is not None
    assert checkpoint.folder == older


def test_what_a_run_does_not_continue_from_is_set_aside(
    recipe: ResolvedRecipe, groups: ProcessGroupCollection
) -> None:
    folders = [save_network(recipe, groups, step=step) for step in (2, 4, 6)]
    (folders[2] / "state.json").unlink()
    resumed = find_checkpoint(recipe)
    assert resumed is not None
    set_aside_later_checkpoints(recipe, resumed)
    assert resumed.folder == folders[1]
    assert (folders[1].parent / "step_00000006.damaged").is_dir()
    older = resuming(recipe, str(folders[0]))
    set_aside_later_checkpoints(older, open_checkpoint(folders[0]))
    assert (folders[1].parent / "step_00000004.abandoned" / "state.json").is_file()
    resumed = find_checkpoint(recipe)
    assert resumed is not None
    assert resumed.folder == folders[0]


def test_a_checkpoint_is_not_a_run_folder(
    recipe: ResolvedRecipe, groups: ProcessGroupCollection
) -> None:
    folder = save_network(recipe, groups)
    with pytest.raises(CheckpointError, match=f"set model.init_from={folder}"):
        refuse_checkpoint_as_run_folder(bend(recipe, {"run.folder": str(folder)}))
    refuse_checkpoint_as_run_folder(recipe)


def test_never_rejects_a_folder_that_has_checkpoints(
    recipe: ResolvedRecipe, groups: ProcessGroupCollection
) -> None:
    never = resuming(recipe, "never")
    assert find_checkpoint(never) is None
    save_network(recipe, groups)
    with pytest.raises(CheckpointError, match=r"requires a run\.folder without checkpoints"):
        find_checkpoint(never)


def test_a_different_model_is_rejected_by_key(
    recipe: ResolvedRecipe, groups: ProcessGroupCollection
) -> None:
    save_network(recipe, groups)
    with pytest.raises(CheckpointError, match=r"model\.qk_norm is head, in the checkpoint none"):
        find_checkpoint(bend(recipe, {"model.qk_norm": "head"}))


def test_a_rollback_finds_the_newest_valid_checkpoint_before_the_step(
    recipe: ResolvedRecipe, groups: ProcessGroupCollection, caplog: pytest.LogCaptureFixture
) -> None:
    folders = [save_network(recipe, groups, step=step) for step in (2, 4, 6)]
    checkpoint = latest_checkpoint_before(recipe, 6)
    assert checkpoint is not None
    assert checkpoint.folder == folders[1]
    assert latest_checkpoint_before(recipe, 2) is None
    (folders[1] / "state.json").unlink()
    checkpoint = latest_checkpoint_before(recipe, 6)
    assert checkpoint is not None
    assert checkpoint.folder == folders[0]
    assert "falling back to the previous checkpoint" in caplog.text


def test_own_checkpoints_come_before_init_from(
    recipe: ResolvedRecipe, groups: ProcessGroupCollection, tmp_path: Path
) -> None:
    folder = save_network(bend(recipe, {"run.folder": str(tmp_path / "parent")}), groups)
    child = bend(recipe, {"model.init_from": str(tmp_path / "parent")})
    parent = initial_checkpoint(child, None)
    assert parent is not None
    assert parent.folder == folder
    resumed = open_checkpoint(save_network(recipe, groups))
    assert initial_checkpoint(child, resumed) is resumed
    assert initial_checkpoint(recipe, None) is None


@pytest.fixture
def child(recipe: ResolvedRecipe, groups: ProcessGroupCollection, tmp_path: Path) -> ResolvedRecipe:
    """A run that starts from a checkpoint of its own model."""
    save_network(bend(recipe, {"run.folder": str(tmp_path / "parent")}), groups)
    return bend(recipe, {"model.init_from": str(tmp_path / "parent")})


@pytest.mark.parametrize(
    ("key", "value", "values"),
    [
        ("rope_theta", 5e5, "500000.0, in the checkpoint 10000.0"),
        ("norm_eps", 1e-6, "1e-06, in the checkpoint 1e-05"),
        ("activation", "gelu", "gelu, in the checkpoint swiglu"),
        ("partial_rotary_factor", 0.5, "0.5, in the checkpoint 1.0"),
        ("parallel_residual", True, "True, in the checkpoint False"),
        ("norm_position", "post", "post, in the checkpoint pre"),
        ("heads", 2, "2, in the checkpoint 4"),
        ("vocab_size", 100, "100, in the checkpoint 101"),
    ],
)
def test_weights_of_a_different_function_are_rejected_by_key(
    child: ResolvedRecipe, key: str, value: object, values: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        initial_checkpoint(bend(child, {f"model.{key}": value}), None)
    message = str(caught.value)
    assert f"trained to compute (model.{key} is {values}): fix the recipe" in message
    assert "\n" not in message


def test_a_default_and_its_explicit_value_are_the_same_function(child: ResolvedRecipe) -> None:
    changes = {"model.head_dim": 8, "model.init_std": 0.1, "model.max_positions": 1000}
    assert initial_checkpoint(bend(child, changes), None) is not None


def test_a_position_table_keeps_its_length(
    recipe: ResolvedRecipe, groups: ProcessGroupCollection, tmp_path: Path
) -> None:
    parent = bend(recipe, {"model.query": "anchor+prefix", "run.folder": str(tmp_path / "parent")})
    save_network(parent, groups)
    longer = bend(parent, {"model.max_positions": 99, "model.init_from": str(tmp_path / "parent")})
    with pytest.raises(CheckpointError, match=r"model\.max_positions is 99, in the checkpoint 65"):
        initial_checkpoint(longer, None)


def outcome_of_check(groups: ProcessGroupCollection, names: list[list[str]]) -> str:
    try:
        check_same_on_all_ranks(None, names[groups.dp.rank()], torch.device("cpu"))
    except ShardError as error:
        return str(error)
    return "same"


@pytest.mark.slow
def test_ranks_that_found_other_shards_are_refused_on_all_of_them() -> None:
    copies = [["a/web_1", "a/web_2"], ["b/web_1", "b/web_2"]]
    assert run_on_ranks(outcome_of_check, 2, copies) == ["same", "same"]
    refusals = run_on_ranks(outcome_of_check, 2, [["a/web_1"], ["a/web_1", "a/web_2"]])
    assert all("all ranks must read the same training shards" in text for text in refusals)
