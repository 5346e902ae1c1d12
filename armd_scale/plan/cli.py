"""The planner as a command: a recipe file in, tables and JSON out."""

from dataclasses import asdict, dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from armd_scale.config import derived as derive
from armd_scale.config.load import load_recipe
from armd_scale.config.resolve import ResolvedRecipe, resolve
from armd_scale.config.schema import Recipe
from armd_scale.data.manifest import load_manifest
from armd_scale.files import atomic_write_json
from armd_scale.plan.estimate import Estimate, plan_for
from armd_scale.plan.fewest_gpus import require_fit, smallest_plan
from armd_scale.plan.gpus import EFFICIENCY, GPUS
from armd_scale.plan.memory import chunks_by_rank, gib
from armd_scale.plan.search import SearchResult, best_layouts, explain_losses, overrides

ASSUMED_VOCABULARY = 50257
"""GPT-2's, where neither the recipe nor the manifest of its shards names one."""
COLUMNS = ("weights", "gradients", "optimizer", "buffers", "activations", "working", "total")


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """What is typed."""

    recipe: Path
    overrides: tuple[str, ...] = ()
    gpus: int | None = None
    """None: the fewest that suffice."""
    gpu_type: str = "h100"
    gpu_memory: float | None = None
    """GiB of each GPU; None: the type's."""
    efficiency: float = EFFICIENCY
    search: bool = False
    json: Path | None = None


def make_plan(request: PlanRequest) -> None:
    """Prints the plan, or the best layouts, and writes the JSON that was asked for.

    Raises:
        RecipeError: the recipe is wrong, cannot run on so many GPUs, or does not fit them; in the
            last case the table is printed first.
    """
    recipe, notes = resolve_for_plan(load_recipe(request.recipe, request.overrides))
    options = {
        "gpu": GPUS[request.gpu_type],
        "gpu_memory_gib": request.gpu_memory,
        "efficiency": request.efficiency,
    }
    console = Console(width=200, soft_wrap=True, highlight=False)
    if request.search:
        world_size = request.gpus or smallest_plan(recipe, **options).world_size
        found = best_layouts(recipe, world_size, **options)
        show_layouts(found, console)
        plans = [plan.to_json() | {"overrides": overrides(plan)} for plan in found.best]
        _write(request.json, {"layouts": plans})
        return
    if request.gpus is None:
        plan = smallest_plan(recipe, **options)
    else:
        plan = plan_for(recipe, request.gpus, **options)
    show_plan(plan, console)
    for note in notes:
        console.print(f"Note: {note}")
    require_fit(plan)
    _write(request.json, plan.to_json())


def resolve_for_plan(recipe: Recipe) -> tuple[ResolvedRecipe, list[str]]:
    """Resolve a recipe whose shards may not exist yet; also return notes on what was assumed."""
    if recipe.model.vocab_size is not None:
        return resolve(recipe), []
    train = recipe.data.train
    prefix = train if isinstance(train, str) else train[0].path
    manifest = load_manifest(prefix)
    if manifest is not None:
        return resolve(recipe, vocab_size=manifest.vocab_size), []
    note = (
        f"{prefix}.json is not there yet, so the vocabulary is taken to be GPT-2's "
        f"{ASSUMED_VOCABULARY:,} tokens; model.vocab_size=N plans another."
    )
    return resolve(recipe, vocab_size=ASSUMED_VOCABULARY), [note]


def show_plan(plan: Estimate, console: Console) -> None:
    """Prints a plan."""
    console.print(_headline(plan))
    console.print(_memory_table(plan))
    console.print(_figures(plan))
    kept = "whole on every rank until the last micro-batch is through, under every ZeRO stage"
    console.print(
        f"Memory in GiB per rank; gradients stay {kept}; the total adds CUDA's own and "
        f"fragmentation. Speeds assume kernels at {100 * plan.efficiency:.0f} % of the peak "
        "(--efficiency) and the links in armd_scale/plan/gpus.py: expect them within a third, and "
        "measure."
    )


def show_layouts(found: SearchResult, console: Console) -> None:
    """Prints the best layouts, with what each loses to what."""
    first = found.best[0]
    console.print(
        f"{first.recipe.run.name} on {first.world_size} x {first.gpu.name}: the best "
        f"{len(found.best)} of {found.tried:,} layouts that run, of which "
        f"{found.tried - found.out_of_memory:,} fit {first.gpu_memory_gib:g} GiB."
    )
    table = _table(
        "", "tensor", "pipeline", "virtual", "sequence", "data", "zero", "micro", "recompute",
        "tokens/s", "days", "where time goes besides",
    )  # fmt: skip
    for place, plan in enumerate(found.best, 1):
        parallel, recipe = plan.recipe.parallel, plan.recipe
        table.add_row(
            str(place), str(parallel.tensor), str(parallel.pipeline),
            str(parallel.virtual_pipeline), "yes" if parallel.sequence else "no",
            str(plan.replicas), str(recipe.optim.zero_stage), str(recipe.train.micro_batch),
            recipe.train.recompute, f"{plan.tokens_per_second:,.0f}", f"{plan.days:.1f}",
            explain_losses(plan),
        )  # fmt: skip
    console.print(table)
    console.print("The first one: " + " ".join(overrides(first)))


def _headline(plan: Estimate) -> str:
    recipe, parallel = plan.recipe, plan.recipe.parallel
    count = derive.num_parameters(recipe.model, recipe.model.vocab_size)
    return (
        f"{recipe.run.name}: {count / 1e9:.3g}B weights on {plan.world_size} x {plan.gpu.name} "
        f"({plan.gpu_memory_gib:g} GiB): tensor {parallel.tensor}, pipeline {parallel.pipeline} x "
        f"{parallel.virtual_pipeline}, data {plan.replicas}, ZeRO {recipe.optim.zero_stage}, "
        f"{plan.micro_batches} micro-batches of {recipe.train.micro_batch}, recompute "
        f"{recipe.train.recompute}"
    )


def _memory_table(plan: Estimate) -> Table:
    table = _table("pipeline stage", "layers", *COLUMNS)
    for rank, chunks in enumerate(chunks_by_rank(plan.recipe)):
        memory, layers = plan.memory[rank], sum(len(chunk.layers) for chunk in chunks)
        values = asdict(memory) | {"total": memory.total}
        table.add_row(str(rank), str(layers), *(f"{gib(values[name]):.2f}" for name in COLUMNS))
    return table


def _figures(plan: Estimate) -> Table:
    time = plan.step_time(one_stream=False)
    sent = plan.to_json()["bytes_sent_per_step"]
    model, hardware = plan.model_flops(), plan.hardware_flops()
    one, used = 100 * plan.one_stream_share, 100 * plan.utilization(hardware)
    rows = {
        "model FLOPs per step": f"{model:.3e}  (MFU {100 * plan.utilization(model):.0f} %)",
        "hardware FLOPs per step": f"{hardware:.3e}  (HFU {used:.0f} %)",
        "steps on one stream": f"{one:.0f} % (left to right)",
        "step, two streams": f"{time.total:.2f} s",
        "  kernels": f"{time.compute:.2f} s",
        "  tensor-parallel messages": f"{time.tensor:.2f} s, {gib(sent['tensor']):.1f} GiB a rank",
        "  messages between stages": f"{time.pipeline:.2f} s, {gib(sent['pipeline']):.1f} GiB",
        "  pipeline bubble": f"{time.bubble:.2f} s, {100 * time.bubble / time.total:.1f} %",
        "  data-parallel messages": f"{time.data:.2f} s, {gib(sent['data']):.1f} GiB",
        "  AdamW": f"{time.update:.2f} s",
        "tokens per second": f"{plan.tokens_per_second:,.0f}",
        "whole run": f"{plan.days:.2f} days, {plan.recipe.train.steps:,} steps",
    }
    table = _table("figure", "estimate")
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def _table(*columns: str) -> Table:
    table = Table(box=box.MARKDOWN, pad_edge=True)
    for name in columns:
        table.add_column(name, no_wrap=True)
    return table


def _write(path: Path | None, content: object) -> None:
    if path is not None:
        atomic_write_json(path, content, indent=2)
