"""Whole plans: every recipe, what cannot run, time and its parts, the search."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from armd_scale.config import derived as derive
from armd_scale.config.load import load_recipe
from armd_scale.config.resolve import ResolvedRecipe, resolve
from armd_scale.config.schema import ParallelConfig
from armd_scale.errors import RecipeError
from armd_scale.parallel.pipeline.partition import bubble_fraction
from armd_scale.plan.cli import PlanRequest, make_plan, resolve_for_plan
from armd_scale.plan.communication import messages_of
from armd_scale.plan.compute import hardware_flops_per_target
from armd_scale.plan.estimate import Estimate, plan_for
from armd_scale.plan.fewest_gpus import require_fit, smallest_plan
from armd_scale.plan.gpus import GPUS
from armd_scale.plan.memory import chunks_by_rank, gib
from armd_scale.plan.search import best_layouts, explain_losses, overrides

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
H100 = GPUS["h100"]


def load(name: str, *changes: str) -> ResolvedRecipe:
    recipe, _ = resolve_for_plan(load_recipe(ROOT / "recipes" / f"{name}.yaml", changes))
    return recipe


def plan(name: str, world_size: int, *changes: str) -> Estimate:
    return plan_for(load(name, *changes), world_size, gpu=H100)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_has_a_plan_that_fits(path: Path, capsys, tmp_path: Path) -> None:
    make_plan(PlanRequest(recipe=path, json=tmp_path / "plan.json"))
    printed = capsys.readouterr().out
    assert "tokens per second" in printed
    assert "…" not in printed  # no column is cut short
    figures = json.loads((tmp_path / "plan.json").read_text())
    assert 0.15 < figures["mfu"] < figures["hfu"] <= figures["efficiency"]
    assert all(stage["total"] < 79 for stage in figures["memory_gib_by_stage"])


# GPUs and GiB that a recipe is written for; days and GiB that its size makes plausible.
PLACES = {
    "pretrain_1b": (8, 80, (1, 4), (20, 60)),
    "pretrain_7b": (64, 80, (3, 9), (10, 40)),
    "pretrain_70b": (512, 80, (40, 100), (20, 60)),
    "armd_125m_owt": (8, 80, (0.2, 1), (5, 20)),
}


@pytest.mark.parametrize("name", PLACES)
def test_large_recipes_fit_the_machines_they_are_written_for(name: str) -> None:
    world_size, memory, days, used = PLACES[name]
    made = plan_for(load(name), world_size, gpu=H100, gpu_memory_gib=float(memory))
    assert made.fits
    assert days[0] < made.days < days[1]
    assert used[0] < gib(made.memory[made.peak_stage].total) < used[1]


def test_time_is_the_sum_of_its_parts() -> None:
    made = plan("pretrain_70b", 512)
    step = made.step_time(one_stream=False)
    assert step.total == pytest.approx(sum(asdict(step).values()))
    assert all(seconds > 0 for seconds in asdict(step).values())
    assert made.step_time(one_stream=True).total < made.step_seconds < step.total
    tokens = derive.tokens_per_step(made.recipe)
    assert made.tokens_per_second == pytest.approx(tokens / made.step_seconds)
    assert made.days == pytest.approx(168_000 * made.step_seconds / 86_400)


def test_kernels_take_the_operations_at_the_assumed_speed() -> None:
    made = plan("pretrain_1b", 8)
    flops = derive.tokens_per_step(made.recipe) * hardware_flops_per_target(
        made.recipe, one_stream=False
    )
    seconds = flops / (8 * 989e12 * made.efficiency)
    assert made.step_time(one_stream=False).compute == pytest.approx(seconds, rel=0.01)


def test_the_bubble_is_the_schedules() -> None:
    """Without messages the bubble is that of `parallel.stages`, by hardware costs."""
    far = replace(H100, node_bytes_per_second=1e30, network_bytes_per_second=1e30)
    made = plan_for(load("pretrain_7b", "train.global_batch=64"), 64, gpu=far)
    costs = [round(1e12 * seconds) for seconds in made._compute_seconds(False)]
    expected = bubble_fraction(costs, made.recipe.parallel, made.micro_batches)
    step = made.step_time(one_stream=False)
    busy = sum(costs) / len(costs) * made.micro_batches / 1e12
    assert 1 - busy / (step.compute + step.bubble) == pytest.approx(expected, rel=1e-3)


def tensor_bytes(recipe: Recipe) -> float:
    ((chunk,),) = chunks_by_rank(recipe)
    return messages_of(recipe, [chunk], replicas=1, one_stream=True).tensor


def test_a_plain_stack_sends_four_all_reduces_a_layer() -> None:
    """Megatron-LM's count (arXiv 1909.08053, section 3), and the embedding's and head's one."""
    recipe = load("pretrain_1b", "parallel.tensor=2", "train.recompute=none")
    row = 8 * 2048 * 2048 * 2  # micro-batch x length x hidden x bytes
    assert tensor_bytes(recipe) == (20 * 4 + 1 + 1) * row
    # With sequence parallelism each is a gather and a scatter; one gather a layer is repeated.
    parallel = replace(recipe.parallel, sequence=True)
    assert tensor_bytes(replace(recipe, parallel=parallel)) == (20 * 9 + 1 + 2) * row / 2


def test_data_parallel_messages_follow_the_zero_stage() -> None:
    def sent(stage: int) -> float:
        recipe = load("pretrain_1b", f"optim.zero_stage={stage}")
        ((chunk,),) = chunks_by_rank(recipe)
        return messages_of(recipe, [chunk], replicas=8, one_stream=False).data

    assert sent(2) == sent(1)
    assert sent(3) == pytest.approx(sent(1) / 3 * (1 + 2 * 8))


def test_pipelines_send_both_streams_below_and_one_above() -> None:
    recipe = load("pretrain_7b", "parallel.virtual_pipeline=1", "parallel.pipeline=4")
    chunks = chunks_by_rank(recipe)
    sent = [messages_of(recipe, chunk, replicas=1, one_stream=False).pipeline for chunk in chunks]
    row = 4096 * 4096 * 2 / 4
    stops = [chunk[0].layers[-1] for chunk in chunks]
    leaving = [2 if stop < 15 else 1 for stop in stops[:-1]] + [0]
    expected = [(out + into) * row for out, into in zip(leaving, [0, *leaving], strict=False)]
    assert sent == expected


def test_what_cannot_run_is_refused_with_a_reason() -> None:
    with pytest.raises(RecipeError, match=r"multiple of parallel\.tensor x pipeline x context"):
        plan("pretrain_7b", 12)
    full = plan("pretrain_1b", 1, "train.micro_batch=64", "train.recompute=none")
    with pytest.raises(RecipeError, match=r"fit 79 GiB .* activations\): lower train.micro_batch"):
        require_fit(full)
    heavy = plan("pretrain_70b", 32, "train.recompute=full")
    with pytest.raises(RecipeError, match="split the model further"):
        require_fit(replace(heavy, gpu_memory_gib=20.0))


def test_the_smallest_plan_is_the_first_that_fits() -> None:
    recipe = load("pretrain_7b", "parallel.pipeline=1", "parallel.virtual_pipeline=1")
    small = smallest_plan(recipe, gpu=H100, gpu_memory_gib=30.0)
    assert small.fits
    assert small.world_size % 4 == 0
    half = small.world_size // 2
    assert not plan_for(recipe, half, gpu=H100, gpu_memory_gib=30.0).fits
    assert not smallest_plan(recipe, gpu=H100, gpu_memory_gib=5.0).fits


def test_a_vocabulary_is_assumed_aloud_unless_given() -> None:
    recipe = load_recipe(ROOT / "recipes" / "pretrain_1b.yaml")
    completed, (note,) = resolve_for_plan(recipe)
    assert completed.model.vocab_size == 50257
    assert "model.vocab_size=N" in note
    given = replace(recipe, model=replace(recipe.model, vocab_size=1000))
    assert resolve_for_plan(given) == (resolve(given), [])


def test_the_search_finds_what_runs_fits_and_is_fastest() -> None:
    small = ("train.global_batch=16", "model.layers=4", "model.two_stream_layers=2")
    recipe = load("pretrain_1b", *small)
    found = best_layouts(recipe, 4, gpu=H100, gpu_memory_gib=6.0)
    speeds = [one.tokens_per_second for one in found.best]
    assert len(speeds) == 5
    assert speeds[0] >= max(speeds) * 0.99
    assert all(one.fits for one in found.best)
    assert 0 < found.out_of_memory < found.tried
    as_it_is = plan_for(replace(recipe, train=replace(recipe.train, micro_batch=1)), 4, gpu=H100)
    assert speeds[0] >= as_it_is.tokens_per_second
    assert "of 6 GiB" in explain_losses(found.best[0])
    again = load("pretrain_1b", *small, *overrides(found.best[0]))
    assert plan_for(again, 4, gpu=H100).step_seconds == found.best[0].step_seconds


def test_the_search_says_when_nothing_fits() -> None:
    with pytest.raises(RecipeError, match=r"fit 2 GiB .* smallest takes .*more or larger GPUs"):
        best_layouts(load("demo_cpu"), 1, gpu=H100, gpu_memory_gib=2.0)
    with pytest.raises(RecipeError, match="divide among 7 GPUs"):
        best_layouts(load("pretrain_1b"), 7, gpu=H100)


def test_a_smaller_micro_batch_than_the_host_can_launch_is_slower() -> None:
    small, large = (plan("armd_125m_owt", 8, f"train.micro_batch={n}") for n in (1, 16))
    assert small.tokens_per_second < 0.5 * large.tokens_per_second


def test_layouts_split_what_they_split() -> None:
    recipe = load("pretrain_1b")
    whole = plan_for(recipe, 8, gpu=H100).memory[0]
    parallel = ParallelConfig(tensor=2, sequence=True)
    halves = plan_for(replace(recipe, parallel=parallel), 8, gpu=H100).memory[0]
    assert halves.weights == pytest.approx(whole.weights / 2, rel=0.01)
    assert 0.5 < halves.activations / whole.activations < 0.6


def test_the_command_prints_writes_and_refuses(tmp_path: Path) -> None:
    def run(*words: object) -> subprocess.CompletedProcess:
        line = [sys.executable, ROOT / "tools" / "plan.py", *map(str, words)]
        return subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, timeout=120)

    recipe = ROOT / "recipes" / "pretrain_1b.yaml"
    done = run(recipe, "--gpus", 8, "--json", "x.json", "model.vocab_size=32000", "--search")
    assert done.returncode == 0, done.stderr
    assert "parallel.tensor=" in done.stdout
    assert len(json.loads((tmp_path / "x.json").read_text())["layouts"]) == 5
    done = run(recipe, "--gpus", 8, "--gpu-memory", 10, "--json", "y.json")
    assert done.returncode == 2
    assert done.stderr.startswith("error: the recipe must fit 10 GiB on each of 8 GPUs, got ")
    assert "activations" in done.stdout
    assert not (tmp_path / "y.json").exists()
    assert run(recipe, "--gpus", "many").returncode == 2
