"""train.deterministic: repeating a run writes the same bytes."""

from pathlib import Path

import pytest
import torch
from megatron.core.process_groups_config import ProcessGroupCollection

from armd_scale.config.schema import Recipe
from armd_scale.parallel.determinism import enable_determinism
from tests.support.cli import contents, tiny_recipe, train, write_text
from tests.support.layouts import LAYOUTS, Layout, checkpoints_of, curves
from tests.support.recipes import bend
from tests.support.spawn import run_on_ranks

pytestmark = pytest.mark.slow


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return tiny_recipe(
        tmp_path,
        write_text(tmp_path / "text"),
        train__deterministic=True,
        model__dropout=0.1,
    )


def take_checkpoint_files(recipe: Recipe) -> dict[str, bytes]:
    """Return the files of a run's checkpoints, and rename its folder for the next run.

    Without the indexes of the tensors, into which PyTorch writes a random number at each save, and
    without the manifests, which contain their hashes.
    """
    folder = Path(recipe.run.folder)
    all_files = contents(checkpoints_of(recipe))
    files = {k: v for k, v in all_files.items() if not k.endswith("manifest.json")}
    assert len([name for name in files if name.endswith(".safetensors")]) > 1
    folder.rename(folder.with_name(f"{folder.name} before {len(list(folder.parent.iterdir()))}"))
    return files


def test_two_runs_write_equal_metrics_and_checkpoints(recipe: Recipe, tmp_path: Path) -> None:
    lines = train(recipe, tmp_path)
    log = (Path(recipe.run.folder) / "log.txt").read_text()
    assert log.count("deterministic: attention by PyTorch's CPU kernels") == 1
    files = take_checkpoint_files(recipe)
    assert train(recipe, tmp_path) == lines
    again = take_checkpoint_files(recipe)
    assert again.keys() == files.keys()
    assert [name for name in files if again[name] != files[name]] == []


def deterministic_curves(groups: ProcessGroupCollection, recipe: Recipe) -> list:
    enable_determinism(torch.device("cpu"))
    try:
        return curves(groups, [recipe], 4, 4)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("layout", [LAYOUTS["DP2 Z2"], LAYOUTS["TP2+SP"]])
def test_two_runs_of_a_layout_write_equal_checkpoints(recipe: Recipe, layout: Layout) -> None:
    changes = {"parallel": layout.parallel, "model.kv_heads": 2, "train.micro_batch": 1}
    recipe = bend(recipe, {**changes, "optim.zero_stage": layout.zero_stage})
    results = []
    for _ in range(2):
        curve = run_on_ranks(deterministic_curves, layout.size, recipe, parallel=layout.parallel)
        results.append((curve, take_checkpoint_files(recipe)))
    assert results[0] == results[1]
