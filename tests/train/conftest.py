"""Fixtures of training tests."""

from pathlib import Path

import pytest

from armd_scale.config.schema import BlendSource, Recipe
from tests.support.cli import tiny_recipe, write_text
from tests.support.recipes import bend


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """A recipe without vocabulary size, with two training sources and one of held-out data."""
    for name in ("a", "b", "valid"):
        write_text(tmp_path / name, num_documents=5)
    train = tuple(BlendSource(path=str(tmp_path / name), weight=1.0) for name in "ab")
    valid = str(tmp_path / "valid")
    return bend(
        tiny_recipe(tmp_path, valid),
        {"data.train": train, "data.valid": valid, "model.vocab_size": None},
    )
