"""Opening the metric writers of a recipe."""

from pathlib import Path

import pytest

from armd_scale.metrics.jsonl import JsonlWriter
from armd_scale.metrics.wandb import WandbWriter
from armd_scale.metrics.writer import MetricsWriter, open_writers
from tests.metrics.test_wandb import recipe_with


@pytest.mark.parametrize(
    ("mode", "types"), [("disabled", [JsonlWriter]), ("offline", [JsonlWriter, WandbWriter])]
)
def test_the_recipe_decides_which_writers_are_opened(
    mode: str, types: list[type], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    writers = open_writers(recipe_with(mode, tmp_path), last_step=0)
    assert [type(writer) for writer in writers] == types
    for writer in writers:
        assert isinstance(writer, MetricsWriter)
        writer.write({"step": 1, "loss": 2.0})
        writer.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": 2.0}\n'
