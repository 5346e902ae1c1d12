"""Building a run's parts: which checkpoint, which weights."""

from pathlib import Path

import pytest
import torch
from megatron.core.process_groups_config import ProcessGroupCollection

from armd_scale.checkpoint.load import open_checkpoint
from armd_scale.checkpoint.save import CheckpointSave
from armd_scale.config.resolve import ResolvedRecipe
from armd_scale.errors import CheckpointError
from armd_scale.train.build import build_network, find_checkpoint, initial_checkpoint
from tests.support.networks import LLAMA, build
from tests.support.recipes import SMALL_RESOLVED, bend


@pytest.fixture
def recipe(tmp_path: Path) -> ResolvedRecipe:
    return bend(SMALL_RESOLVED, {"model": LLAMA, "run.folder": str(tmp_path / "run")})


def save(recipe: ResolvedRecipe, groups: ProcessGroupCollection, *, step: int = 5) -> Path:
    return CheckpointSave(
        Path(recipe.run.folder) / "checkpoints", step=step, network=build(LLAMA, groups),
        recipe=recipe, state={}, optimizer={}, tokenizer=None,
    ).wait()  # fmt: skip


def resuming(recipe: ResolvedRecipe, resume: str) -> ResolvedRecipe:
    return bend(recipe, {"checkpoint.resume": resume})


def test_auto_takes_the_newest_where_there_is_one(
    recipe: ResolvedRecipe, groups: ProcessGroupCollection
) -> None:
    assert find_checkpoint(recipe) is None
    save(recipe, groups, step=5)
    newest = save(recipe, groups, step=6)
    found = find_checkpoint(recipe)
    assert found is not None
    assert found.folder == newest


def test_a_path_takes_that_one(recipe: ResolvedRecipe, groups: ProcessGroupCollection) -> None:
    older = save(recipe, groups, step=5)
    save(recipe, groups, step=6)
    found = find_checkpoint(resuming(recipe, str(older)))
    assert found is not None
    assert found.folder == older


def test_never_does_not_bury_another_run(
    recipe: ResolvedRecipe, groups: ProcessGroupCollection
) -> None:
    never = resuming(recipe, "never")
    assert find_checkpoint(never) is None
    save(recipe, groups)
    with pytest.raises(CheckpointError, match=r"needs a run\.folder without checkpoints"):
        find_checkpoint(never)


def test_another_model_is_named_by_key(
    recipe: ResolvedRecipe, groups: ProcessGroupCollection
) -> None:
    save(recipe, groups)
    with pytest.raises(CheckpointError, match=r"model\.qk_norm is head against none"):
        find_checkpoint(bend(recipe, {"model.qk_norm": "head"}))


def test_what_runs_start_from(
    recipe: ResolvedRecipe, groups: ProcessGroupCollection, tmp_path: Path
) -> None:
    """A resumed run's own weights, else those of `init_from`, else drawn ones."""
    folder = save(bend(recipe, {"run.folder": str(tmp_path / "parent")}), groups)
    child = bend(recipe, {"model.init_from": str(tmp_path / "parent")})
    parent, cpu = initial_checkpoint(child, None), torch.device("cpu")
    assert parent is not None
    assert parent.folder == folder
    resumed = open_checkpoint(save(recipe, groups))
    assert initial_checkpoint(child, resumed) is resumed
    assert initial_checkpoint(recipe, None) is None

    network = build_network(child, parent, groups=groups, device=cpu)
    for name, parameter in build(LLAMA, groups).named_parameters():
        assert torch.equal(network.parameters_by_name()[name], parameter)
    drawn = [build_network(recipe, None, groups=groups, device=cpu) for _ in range(2)]
    other = bend(recipe, {"run.seed": 5})
    drawn.append(build_network(other, None, groups=groups, device=cpu))
    one, same, another = (n.parameters_by_name()["embedding.weight"] for n in drawn)
    assert torch.equal(one, same)
    assert not torch.equal(one, another)


@pytest.fixture
def started(
    recipe: ResolvedRecipe, groups: ProcessGroupCollection, tmp_path: Path
) -> ResolvedRecipe:
    """A run that starts from a checkpoint of its own model."""
    save(bend(recipe, {"run.folder": str(tmp_path / "other")}), groups)
    return bend(recipe, {"model.init_from": str(tmp_path / "other")})


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("rope_theta", 5e5, "500000.0 against 10000.0"),
        ("norm_eps", 1e-6, "1e-06 against 1e-05"),
        ("activation", "gelu", "gelu against swiglu"),
        ("partial_rotary_factor", 0.5, "0.5 against 1.0"),
        ("parallel_residual", True, "True against False"),
        ("norm_position", "post", "post against pre"),
        ("heads", 2, "2 against 4"),
        ("vocab_size", 100, "100 against 101"),
    ],
)
def test_weights_of_another_function_are_refused_by_key(
    started: ResolvedRecipe, key: str, value: object, said: str
) -> None:
    with pytest.raises(CheckpointError) as caught:
        initial_checkpoint(bend(started, {f"model.{key}": value}), None)
    message = str(caught.value)
    assert f"trained to compute, and model.{key} is {said}: mend the recipe" in message
    assert "\n" not in message


def test_what_null_stands_for_is_no_other_function(started: ResolvedRecipe) -> None:
    changes = {"model.head_dim": 8, "model.init_std": 0.1, "model.max_positions": 1000}
    assert initial_checkpoint(bend(started, changes), None) is not None


def test_a_table_of_positions_keeps_its_reach(
    recipe: ResolvedRecipe, groups: ProcessGroupCollection, tmp_path: Path
) -> None:
    pooled = bend(recipe, {"model.query": "anchor+prefix", "run.folder": str(tmp_path / "other")})
    save(pooled, groups)
    longer = bend(pooled, {"model.max_positions": 99, "model.init_from": str(tmp_path / "other")})
    with pytest.raises(CheckpointError, match=r"model\.max_positions is 99 against 65"):
        initial_checkpoint(longer, None)


@pytest.mark.parametrize(
    ("changes", "drawn"),
    [
        ({}, []),
        ({"two_stream_layers": 4, "upper_visibility": "self"}, []),
        ({"two_stream_layers": 0}, []),
        ({"max_anchor_gap": 7}, ["query_start.gap.weight"]),
        ({"query": "learned"}, ["query_start.vector"]),
        (
            {"query": "anchor+prefix", "prefix_width": 5},
            ["query_start.prefix.position_embedding", "query_start.prefix.scale"],
        ),
    ],
)
def test_another_query_start_is_drawn_and_all_else_read(
    started: ResolvedRecipe,
    groups: ProcessGroupCollection,
    changes: dict[str, object],
    drawn: list[str],
) -> None:
    recipe = bend(started, {f"model.{key}": value for key, value in changes.items()})
    cpu, theirs = torch.device("cpu"), build(LLAMA, groups).parameters_by_name()
    found = build_network(
        recipe, initial_checkpoint(recipe, None), groups=groups, device=cpu
    ).parameters_by_name()
    fresh = build_network(recipe, None, groups=groups, device=cpu).parameters_by_name()
    for name, parameter in found.items():
        assert torch.equal(parameter, fresh[name] if name in drawn else theirs[name]), name
    assert set(drawn) <= set(found)


def test_recompute_reaches_the_network(
    recipe: ResolvedRecipe, groups: ProcessGroupCollection
) -> None:
    again = bend(recipe, {"train.recompute": "full"})
    made = [
        build_network(r, None, groups=groups, device=torch.device("cpu")) for r in (recipe, again)
    ]
    assert [network.models[0].recompute for network in made] == ["none", "full"]
