"""Adaptation by the commands: HF folder, ARMD, fine-tuning, HF folder again."""

import dataclasses
import json
from pathlib import Path

import pytest

from armd_scale.checkpoint.load import open_checkpoint
from armd_scale.config.schema import DistillationConfig
from armd_scale.experiments.adaptation.train_llama import score_llama
from armd_scale.order.policies import Strided
from tests.support.cli import run, tiny_recipe, train, write_text
from tests.support.hf_folders import write_folder

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_after_strided_fine_tuning_the_export_is_still_the_ar_model(
    tmp_path: Path, family: str
) -> None:
    text, hf, armd = write_text(tmp_path / "text"), tmp_path / "hf", tmp_path / "armd"
    write_folder(hf, family)
    done = run("tools/convert_ar_to_armd.py", "--hf", hf, "--output", armd, folder=tmp_path)
    assert done.status == 0, done.errors
    model = dataclasses.replace(open_checkpoint(armd).recipe.model, init_from=str(armd))
    recipe = tiny_recipe(
        tmp_path, text, model=model, order=Strided(streams=(1, 2, 4)), train__steps=12,
        train__distillation=DistillationConfig(checkpoint=str(armd), weight=0.5),
    )  # fmt: skip
    before = score_llama(hf, recipe)
    first, *_, last = train(recipe, tmp_path)
    assert last["loss"] < first["loss"] - 0.3

    folder, scores = tmp_path / "ar", tmp_path / "scores.json"
    checkpoint = ("--checkpoint", recipe.run.folder)
    done = run("tools/export_hf.py", *checkpoint, "--output", folder, "--as-ar", folder=tmp_path)
    assert done.status == 0, done.errors
    options = ("--data", text, "--order", "l2r", "--samples", recipe.eval.samples, "--json", scores)
    done = run("tools/evaluate.py", *checkpoint, *options, folder=tmp_path)
    assert done.status == 0, done.errors
    evaluated = json.loads(scores.read_text())["nll_nats_per_token"]
    exported = score_llama(folder, recipe)
    assert evaluated == pytest.approx(exported, abs=1e-5)
    assert exported < before - 0.1
