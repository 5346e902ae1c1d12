"""Find the fewest GPUs on which a recipe fits, and refuse an estimate that does not fit."""

from typing import Any

from armd_scale.config.resolve import ResolvedRecipe
from armd_scale.errors import RecipeError
from armd_scale.plan.estimate import Estimate, estimate_cost
from armd_scale.plan.memory import gib


def estimate_on_fewest_gpus(recipe: ResolvedRecipe, **options: Any) -> Estimate:
    """Return the estimate on the fewest GPUs on which the recipe runs and fits.

    Tries every data-parallel size that divides the global batch. If nothing fits, returns the
    estimate whose fullest stage needs the least memory.

    Args:
        recipe: passes the rules; it is resolved.
        options: keyword arguments of `estimate_cost`.

    Raises:
        RecipeError: no number of GPUs can run the recipe.
    """
    parallel, train = recipe.parallel, recipe.train
    ranks_per_replica = parallel.tensor * parallel.pipeline * parallel.context
    max_replicas = train.global_batch // train.micro_batch
    estimates = []
    for replicas in (n for n in range(1, max_replicas + 1) if max_replicas % n == 0):
        try:
            candidate = estimate_cost(recipe, ranks_per_replica * replicas, **options)
        except RecipeError:  # an interleaved schedule does not take every number of micro-batches
            continue
        if candidate.fits:
            return candidate
        estimates.append(candidate)
    if not estimates:
        return estimate_cost(recipe, ranks_per_replica, **options)  # raises the reason
    return min(estimates, key=lambda candidate: candidate.peak_memory.total)


def require_fit(estimate: Estimate) -> None:
    """Check that a recipe fits its GPUs.

    Raises:
        RecipeError: it does not; the message names the fullest stage and what reduces its memory.
    """
    if estimate.fits:
        return
    memory = estimate.peak_memory
    state, kept = gib(memory.model_state), gib(memory.activations + memory.workspace)
    advice = "split the model further (parallel.tensor, parallel.pipeline)"
    if kept > state:
        advice = "lower train.micro_batch or set train.recompute to selective or full"
    raise RecipeError(
        f"the recipe must fit {estimate.gpu_memory_gib:g} GiB on each of {estimate.world_size} "
        f"GPUs, got {gib(memory.total):.1f} GiB on pipeline stage {estimate.peak_stage} "
        f"({state:.1f} for weights, gradients and optimizer, {kept:.1f} for activations): "
        f"{advice}, or try --search"
    )
