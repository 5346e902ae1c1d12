"""The planning command: every recipe, printed tables, the JSON file, refusals."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from armd_scale.config.load import load_recipe
from armd_scale.config.resolve import resolve
from armd_scale.plan.cli import PlanRequest, resolve_for_plan, run_plan
from tests.plan.estimates import ROOT

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_has_an_estimate_that_fits(path: Path, capsys, tmp_path: Path) -> None:
    run_plan(PlanRequest(recipe=path, json=tmp_path / "plan.json"))
    printed = capsys.readouterr().out
    assert "tokens per second" in printed
    assert "…" not in printed  # no column is cut short
    figures = json.loads((tmp_path / "plan.json").read_text())
    assert 0.15 < figures["mfu"] < figures["hfu"] <= figures["efficiency"]
    assert all(stage["total"] < 79 for stage in figures["memory_gib_by_stage"])


@pytest.mark.parametrize(
    ("zero_stage", "sentence"),
    [
        (1, "Gradients are reduced once a step, after the last micro-batch"),
        (2, "ZeRO 2 reduces gradients after every micro-batch"),
    ],
)
def test_the_text_says_when_gradients_are_reduced(zero_stage: int, sentence: str, capsys) -> None:
    recipe = ROOT / "recipes" / "pretrain_1b.yaml"
    run_plan(PlanRequest(recipe=recipe, gpus=8, overrides=(f"optim.zero_stage={zero_stage}",)))
    assert sentence in " ".join(capsys.readouterr().out.split())


def test_an_assumed_vocabulary_is_noted() -> None:
    recipe = load_recipe(ROOT / "recipes" / "pretrain_1b.yaml")
    resolved, (note,) = resolve_for_plan(recipe)
    assert resolved.model.vocab_size == 50257
    assert "model.vocab_size=N" in note
    known = replace(recipe, model=replace(recipe.model, vocab_size=1000))
    assert resolve_for_plan(known) == (resolve(known), [])


def run_tool(folder: Path, *words: object) -> subprocess.CompletedProcess:
    line = [sys.executable, ROOT / "tools" / "plan.py", *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, cwd=folder, timeout=120)


def test_the_command_searches_and_writes_the_layouts(tmp_path: Path) -> None:
    recipe = ROOT / "recipes" / "pretrain_1b.yaml"
    options = ("--gpus", 8, "--json", "x.json", "model.vocab_size=32000", "--search")
    done = run_tool(tmp_path, recipe, *options)
    assert done.returncode == 0, done.stderr
    assert "parallel.tensor=" in done.stdout
    assert len(json.loads((tmp_path / "x.json").read_text())["layouts"]) == 5


def test_the_command_prints_the_tables_and_refuses_what_does_not_fit(tmp_path: Path) -> None:
    recipe = ROOT / "recipes" / "pretrain_1b.yaml"
    done = run_tool(tmp_path, recipe, "--gpus", 8, "--gpu-memory", 10, "--json", "y.json")
    assert done.returncode == 2
    assert done.stderr.startswith("error: the recipe must fit 10 GiB on each of 8 GPUs, got ")
    assert "activations" in done.stdout
    assert not (tmp_path / "y.json").exists()


def test_a_number_of_gpus_that_is_not_a_number_is_refused(tmp_path: Path) -> None:
    done = run_tool(tmp_path, ROOT / "recipes" / "pretrain_1b.yaml", "--gpus", "many")
    assert done.returncode == 2
    assert "argument --gpus: must be a whole number >= 1 (got 'many')" in done.stderr
