"""Whether a plan fits its GPUs, and the fewest GPUs that a recipe fits."""

from typing import Any

from armd_scale.config.resolve import ResolvedRecipe
from armd_scale.errors import RecipeError
from armd_scale.plan.estimate import Estimate, plan_for
from armd_scale.plan.memory import gib


def smallest_plan(recipe: ResolvedRecipe, **options: Any) -> Estimate:
    """The plan for the fewest GPUs on which the recipe runs and fits; else the least overfull."""
    parallel, train = recipe.parallel, recipe.train
    size = parallel.tensor * parallel.pipeline * parallel.context
    largest = train.global_batch // train.micro_batch
    plans = []
    for replicas in (n for n in range(1, largest + 1) if largest % n == 0):
        try:
            plan = plan_for(recipe, size * replicas, **options)
        except RecipeError:  # an interleaved schedule does not take every number of micro-batches
            continue
        if plan.fits:
            return plan
        plans.append(plan)
    if not plans:
        return plan_for(recipe, size, **options)  # says why not
    return min(plans, key=lambda plan: plan.memory[plan.fullest].total)


def require_fit(plan: Estimate) -> None:
    """Makes sure that the plan fits its GPUs.

    Raises:
        RecipeError: it does not; what takes the most, and what would make it less.
    """
    if plan.fits:
        return
    memory = plan.memory[plan.peak_stage]
    state, kept = gib(memory.model_state), gib(memory.activations + memory.workspace)
    advice = "split the model further (parallel.tensor, parallel.pipeline)"
    if kept > state:
        advice = "lower train.micro_batch or set train.recompute to selective or full"
    raise RecipeError(
        f"the recipe must fit {plan.gpu_memory_gib:g} GiB on each of {plan.world_size} GPUs, got "
        f"{gib(memory.total):.1f} GiB on pipeline stage {plan.peak_stage} ({state:.1f} for weights, "
        f"gradients and optimizer, {kept:.1f} for activations): {advice}, or see --search"
    )
