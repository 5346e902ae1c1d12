"""Whole estimates: machines that recipes are written for, step time and its parts."""

from dataclasses import asdict, replace

import pytest

from armd_scale.config import derived
from armd_scale.config.schema import ParallelConfig
from armd_scale.errors import RecipeError
from armd_scale.parallel.pipeline.partition import bubble_fraction
from armd_scale.plan.compute import hardware_flops_per_target
from armd_scale.plan.estimate import estimate_cost
from armd_scale.plan.memory import gib
from tests.plan.estimates import H100, estimate_on_h100, load

# GPUs and GiB that a recipe is written for; days and used GiB that its size makes plausible.
MACHINES = {
    "pretrain_1b": (8, 80, (1, 4), (20, 60)),
    "pretrain_7b": (64, 80, (3, 9), (10, 40)),
    "pretrain_70b": (512, 80, (40, 100), (20, 60)),
    "armd_125m_owt": (8, 80, (0.2, 1), (5, 20)),
}


@pytest.mark.parametrize("name", MACHINES)
def test_large_recipes_fit_the_machines_they_are_written_for(name: str) -> None:
    world_size, memory, days, used = MACHINES[name]
    estimate = estimate_cost(load(name), world_size, gpu=H100, gpu_memory_gib=float(memory))
    assert estimate.fits
    assert days[0] < estimate.days < days[1]
    assert used[0] < gib(estimate.peak_memory.total) < used[1]


def test_step_time_is_the_sum_of_its_parts() -> None:
    estimate = estimate_on_h100("pretrain_70b", 512)
    step = estimate.step_time(one_stream=False)
    assert step.total == pytest.approx(sum(asdict(step).values()))
    assert all(seconds > 0 for seconds in asdict(step).values())
    assert estimate.step_time(one_stream=True).total < estimate.step_seconds < step.total
    tokens = derived.tokens_per_step(estimate.recipe)
    assert estimate.tokens_per_second == pytest.approx(tokens / estimate.step_seconds)
    assert estimate.days == pytest.approx(168_000 * estimate.step_seconds / 86_400)


def test_kernels_run_the_hardware_flops_at_the_assumed_speed() -> None:
    estimate = estimate_on_h100("pretrain_1b", 8)
    flops = derived.tokens_per_step(estimate.recipe) * hardware_flops_per_target(
        estimate.recipe, one_stream=False
    )
    seconds = flops / (8 * 989e12 * estimate.efficiency)
    assert estimate.step_time(one_stream=False).compute == pytest.approx(seconds, rel=0.01)


def test_the_bubble_is_that_of_the_schedule() -> None:
    """Without communication it is `bubble_fraction` of the hardware costs of the stages."""
    no_latency = replace(H100, node_bytes_per_second=1e30, network_bytes_per_second=1e30)
    estimate = estimate_cost(load("pretrain_7b", "train.global_batch=64"), 64, gpu=no_latency)
    costs = [round(1e12 * seconds) for seconds in estimate._compute_seconds(False)]
    expected = bubble_fraction(costs, estimate.recipe.parallel, estimate.micro_batches)
    step = estimate.step_time(one_stream=False)
    busy = sum(costs) / len(costs) * estimate.micro_batches / 1e12
    assert 1 - busy / (step.compute + step.bubble) == pytest.approx(expected, rel=1e-3)


def test_an_impossible_layout_is_refused_with_a_reason() -> None:
    with pytest.raises(RecipeError, match=r"multiple of parallel\.tensor x pipeline x context"):
        estimate_on_h100("pretrain_7b", 12)


def test_a_smaller_micro_batch_than_the_host_can_launch_is_slower() -> None:
    small, large = (estimate_on_h100("armd_125m_owt", 8, f"train.micro_batch={n}") for n in (1, 16))
    assert small.tokens_per_second < 0.5 * large.tokens_per_second


def test_tensor_parallelism_splits_weights_and_activations() -> None:
    recipe = load("pretrain_1b")
    whole = estimate_cost(recipe, 8, gpu=H100).memory[0]
    parallel = ParallelConfig(tensor=2, sequence=True)
    halves = estimate_cost(replace(recipe, parallel=parallel), 8, gpu=H100).memory[0]
    assert halves.weights == pytest.approx(whole.weights / 2, rel=0.01)
    assert 0.5 < halves.activations / whole.activations < 0.6
