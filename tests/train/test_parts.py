"""Building a run's parts: which checkpoint, which weights."""

from pathlib import Path

import pytest
import torch
from megatron.core.process_groups_config import ProcessGroupCollection

from armd_scale.checkpoint.load import open_checkpoint
from armd_scale.checkpoint.save import save_checkpoint
from armd_scale.config.schema import Recipe
from armd_scale.errors import CheckpointError
from armd_scale.train.parts import build_network, find_checkpoint, first_weights
from tests.config.examples import SMALL, bend
from tests.support.networks import LLAMA, build


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return bend(SMALL, {"model": LLAMA, "run.folder": str(tmp_path / "run")})


def save(recipe: Recipe, groups: ProcessGroupCollection, *, step: int = 5) -> Path:
    return save_checkpoint(
        Path(recipe.run.folder) / "checkpoints", step=step, network=build(LLAMA, groups),
        recipe=recipe, state={}, optimizer={}, tokenizer=None, groups=groups,
    )  # fmt: skip


def resuming(recipe: Recipe, resume: str) -> Recipe:
    return bend(recipe, {"checkpoint.resume": resume})


def test_auto_takes_the_newest_where_there_is_one(
    recipe: Recipe, groups: ProcessGroupCollection
) -> None:
    assert find_checkpoint(recipe) is None
    save(recipe, groups, step=5)
    newest = save(recipe, groups, step=6)
    found = find_checkpoint(recipe)
    assert found is not None
    assert found.folder == newest


def test_a_path_takes_that_one(recipe: Recipe, groups: ProcessGroupCollection) -> None:
    older = save(recipe, groups, step=5)
    save(recipe, groups, step=6)
    found = find_checkpoint(resuming(recipe, str(older)))
    assert found is not None
    assert found.folder == older


def test_never_does_not_bury_another_run(recipe: Recipe, groups: ProcessGroupCollection) -> None:
    never = resuming(recipe, "never")
    assert find_checkpoint(never) is None
    save(recipe, groups)
    with pytest.raises(CheckpointError, match=r"needs a run\.folder without checkpoints"):
        find_checkpoint(never)


def test_another_model_is_named_by_key(recipe: Recipe, groups: ProcessGroupCollection) -> None:
    save(recipe, groups)
    with pytest.raises(CheckpointError, match=r"model\.qk_norm is True against False"):
        find_checkpoint(bend(recipe, {"model.qk_norm": True}))


def test_what_runs_start_from(
    recipe: Recipe, groups: ProcessGroupCollection, tmp_path: Path
) -> None:
    """A resumed run's own weights, else those of `init_from`, else drawn ones."""
    folder = save(bend(recipe, {"run.folder": str(tmp_path / "parent")}), groups)
    child = bend(recipe, {"model.init_from": str(tmp_path / "parent")})
    parent, cpu = first_weights(child, None), torch.device("cpu")
    assert parent is not None
    assert parent.folder == folder
    resumed = open_checkpoint(save(recipe, groups))
    assert first_weights(child, resumed) is resumed
    assert first_weights(recipe, None) is None

    network = build_network(child, parent, groups=groups, device=cpu)
    for name, parameter in build(LLAMA, groups).named_parameters():
        assert torch.equal(network.by_name()[name], parameter)
    drawn = [build_network(recipe, None, groups=groups, device=cpu) for _ in range(2)]
    other = bend(recipe, {"run.seed": 5})
    drawn.append(build_network(other, None, groups=groups, device=cpu))
    one, same, another = (n.by_name()["embedding.weight"] for n in drawn)
    assert torch.equal(one, same)
    assert not torch.equal(one, another)


def test_recompute_reaches_the_network(recipe: Recipe, groups: ProcessGroupCollection) -> None:
    again = bend(recipe, {"train.recompute": "full"})
    made = [
        build_network(r, None, groups=groups, device=torch.device("cpu")) for r in (recipe, again)
    ]
    assert [network.models[0].recompute for network in made] == ["none", "full"]
