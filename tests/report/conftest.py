"""Real runs for the tests of the report."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.cli import tiny_recipe, train, write_text


@pytest.fixture(scope="session")
def run_folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The folders of two real runs; the first was resumed and has a generated text."""
    folder = tmp_path_factory.mktemp("runs")
    text = write_text(folder / "text")
    run_folders = []
    for name, lr in (("slow", 1e-3), ("fast", 1e-2)):
        home = folder / name
        home.mkdir()
        recipe = tiny_recipe(home, text, run__name=name, eval__every_steps=4, eval__samples=2)
        recipe = replace(recipe, optim=replace(recipe.optim, lr=lr, min_lr=lr / 10))
        if name == "slow":
            train(recipe, home, "train.steps=6")
        train(recipe, home)
        run_folders.append(Path(recipe.run.folder))
    (run_folders[0] / "samples.txt").write_text("once <upon> a time")
    return run_folders
