"""The Weights & Biases writer."""

from pathlib import Path

import pytest

from armd_scale.config.schema import LogConfig, Recipe, WandbConfig
from armd_scale.metrics.wandb import open_wandb_writer
from tests.support.recipes import SMALL, bend

pytestmark = pytest.mark.slow


def recipe_with(mode: str, folder: Path) -> Recipe:
    log = LogConfig(every_steps=1, wandb=WandbConfig(mode=mode))  # type: ignore[arg-type]
    return bend(SMALL, {"log": log, "run.folder": str(folder)})


def test_disabled_opens_nothing(tmp_path: Path) -> None:
    assert open_wandb_writer(recipe_with("disabled", tmp_path), 0) is None
    assert list(tmp_path.iterdir()) == []


def test_an_offline_run_is_written_to_the_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    writer = open_wandb_writer(recipe_with("offline", tmp_path), 0)
    assert writer is not None
    writer.write({"step": 1, "loss": 2.0, "order": "l2r"})
    writer.write({"step": 1, "eval_order": "strided-ar:2", "perplexity": 9.0})
    writer.close()
    assert list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
