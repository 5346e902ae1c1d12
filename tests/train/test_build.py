"""Building the model: which weights it gets, and what it recomputes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core.process_groups_config import ProcessGroupCollection

from armd_scale.config.resolve import ResolvedRecipe
from armd_scale.errors import TrainingError
from armd_scale.train.build import build_model
from armd_scale.train.resume import initial_checkpoint
from tests.support.checkpoints import save_network
from tests.support.networks import LLAMA, build
from tests.support.recipes import SMALL_RESOLVED, bend

CPU = torch.device("cpu")


@pytest.fixture
def recipe(tmp_path: Path) -> ResolvedRecipe:
    return bend(SMALL_RESOLVED, {"model": LLAMA, "run.folder": str(tmp_path / "run")})


@pytest.fixture
def child(recipe: ResolvedRecipe, groups: ProcessGroupCollection, tmp_path: Path) -> ResolvedRecipe:
    """A run that starts from a checkpoint of its own model."""
    save_network(bend(recipe, {"run.folder": str(tmp_path / "parent")}), groups)
    return bend(recipe, {"model.init_from": str(tmp_path / "parent")})


def test_weights_come_from_a_checkpoint_or_from_the_seed(
    recipe: ResolvedRecipe, child: ResolvedRecipe, groups: ProcessGroupCollection
) -> None:
    network = build_model(child, initial_checkpoint(child, None), groups=groups, device=CPU)
    for name, parameter in build(LLAMA, groups).named_parameters():
        assert torch.equal(network.parameters_by_name()[name], parameter)
    networks = [
        build_model(r, None, groups=groups, device=CPU)
        for r in (recipe, recipe, bend(recipe, {"run.seed": 5}))
    ]
    first, same, other = (n.parameters_by_name()["embedding.weight"] for n in networks)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


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
def test_another_query_start_is_drawn_and_all_else_loaded(
    child: ResolvedRecipe,
    groups: ProcessGroupCollection,
    changes: dict[str, object],
    drawn: list[str],
) -> None:
    recipe = bend(child, {f"model.{key}": value for key, value in changes.items()})
    saved = build(LLAMA, groups).parameters_by_name()
    checkpoint = initial_checkpoint(recipe, None)
    parameters = build_model(recipe, checkpoint, groups=groups, device=CPU).parameters_by_name()
    fresh = build_model(recipe, None, groups=groups, device=CPU).parameters_by_name()
    for name, parameter in parameters.items():
        assert torch.equal(parameter, fresh[name] if name in drawn else saved[name]), name
    assert set(drawn) <= set(parameters)


def test_recompute_reaches_the_network(
    recipe: ResolvedRecipe, groups: ProcessGroupCollection
) -> None:
    for recompute in ("none", "full"):
        changed = bend(recipe, {"train.recompute": recompute})
        network = build_model(changed, None, groups=groups, device=CPU)
        assert network.models[0].recompute == recompute


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"model": replace(LLAMA, hidden=10**9, ffn_hidden=10**9)}, "weights of a process"),
        ({"train.micro_batch": 10**9}, "the rows of 1,000,000,000 samples of 64 tokens"),
    ],
)
def test_sizes_that_do_not_fit_into_memory_are_refused(
    recipe: ResolvedRecipe, groups: ProcessGroupCollection, changes: dict[str, Any], what: str
) -> None:
    absurd = bend(recipe, changes)
    with pytest.raises(TrainingError, match=f"{what} must fit the memory") as caught:
        build_model(absurd, None, groups=groups, device=CPU)
    assert "\n" not in str(caught.value)
