"""The planning command: from a recipe file to tables on the terminal and a JSON file."""

from dataclasses import asdict, dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from armd_scale.config import derived
from armd_scale.config.load import load_recipe
from armd_scale.config.resolve import ResolvedRecipe, resolve
from armd_scale.config.schema import Recipe
from armd_scale.data.manifest import load_manifest
from armd_scale.json_files import atomic_write_json
from armd_scale.plan.estimate import Estimate, estimate_cost
from armd_scale.plan.fewest_gpus import estimate_on_fewest_gpus, require_fit
from armd_scale.plan.gpus import EFFICIENCY, GPUS
from armd_scale.plan.memory import chunks_by_rank, gib
from armd_scale.plan.search import (
    SearchResult,
    explain_losses,
    layout_overrides,
    search_layouts,
)

ASSUMED_VOCAB_SIZE = 50257
"""GPT-2's vocabulary, assumed if neither the recipe nor the manifest of its shards has a size."""
MEMORY_COLUMNS = (
    "weights", "gradients", "optimizer", "buffers", "activations", "workspace", "total",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PlanRequest:
    """What the command line asks for."""

    recipe: Path
    overrides: tuple[str, ...] = ()
    gpus: int | None = None
    """Number of GPUs; None: the fewest on which the recipe fits."""
    gpu_type: str = "h100"
    gpu_memory: float | None = None
    """GiB of each GPU; None: that of the type."""
    efficiency: float = EFFICIENCY
    search: bool = False
    json: Path | None = None


def run_plan(request: PlanRequest) -> None:
    """Print the estimate of a recipe, or its fastest layouts, and write the JSON file.

    Raises:
        RecipeError: the recipe is invalid, cannot run on this number of GPUs, or does not fit
            them; in the last case the tables are printed first and no file is written.
    """
    recipe, notes = resolve_for_plan(load_recipe(request.recipe, request.overrides))
    options = {
        "gpu": GPUS[request.gpu_type],
        "gpu_memory_gib": request.gpu_memory,
        "efficiency": request.efficiency,
    }
    console = Console(width=200, soft_wrap=True, highlight=False)
    if request.search:
        world_size = request.gpus or estimate_on_fewest_gpus(recipe, **options).world_size
        result = search_layouts(recipe, world_size, **options)
        show_layouts(result, console)
        layouts = [
            estimate.to_json() | {"overrides": layout_overrides(estimate)}
            for estimate in result.best
        ]
        _write_json(request.json, {"layouts": layouts})
        return
    if request.gpus is None:
        estimate = estimate_on_fewest_gpus(recipe, **options)
    else:
        estimate = estimate_cost(recipe, request.gpus, **options)
    show_estimate(estimate, console)
    for note in notes:
        console.print(f"Note: {note}")
    require_fit(estimate)
    _write_json(request.json, estimate.to_json())


def resolve_for_plan(recipe: Recipe) -> tuple[ResolvedRecipe, list[str]]:
    """Resolve a recipe whose shards may not exist yet; also return notes on what was assumed."""
    if recipe.model.vocab_size is not None:
        return resolve(recipe), []
    prefix = recipe.data.sources[0].prefixes[0]
    manifest = load_manifest(prefix)
    if manifest is not None:
        return resolve(recipe, vocab_size=manifest.vocab_size), []
    note = (
        f"{prefix}.json does not exist yet, so the vocabulary is assumed to have GPT-2's "
        f"{ASSUMED_VOCAB_SIZE:,} tokens; set model.vocab_size=N for another size."
    )
    return resolve(recipe, vocab_size=ASSUMED_VOCAB_SIZE), [note]


def show_estimate(estimate: Estimate, console: Console) -> None:
    """Print an estimate: a headline, memory by stage, figures of a step, and how it was counted."""
    console.print(_headline(estimate))
    console.print(_memory_table(estimate))
    console.print(_figures_table(estimate))
    console.print(
        f"Memory in GiB per rank. {_describe_gradients(estimate.recipe)} The total includes the "
        "CUDA context and fragmentation. Speeds assume kernels at "
        f"{100 * estimate.efficiency:.0f} % of the peak (--efficiency) and the links in "
        "armd_scale/plan/gpus.py; expect errors up to a third, and measure."
    )


def _describe_gradients(recipe: ResolvedRecipe) -> str:
    """Say when gradients are reduced, which decides how many of them a rank holds."""
    if derived.reduces_every_micro_batch(recipe.optim, pipeline_size=recipe.parallel.pipeline):
        return (
            f"ZeRO {recipe.optim.zero_stage} reduces gradients after every micro-batch, so each "
            "rank holds only its shard of them."
        )
    return (
        "Gradients are reduced once a step, after the last micro-batch, so each rank holds all "
        "gradients of its layers."
    )


def show_layouts(result: SearchResult, console: Console) -> None:
    """Print the best layouts with the overheads of each, and the overrides for the best one."""
    best = result.best[0]
    console.print(
        f"{best.recipe.run.name} on {best.world_size} x {best.gpu.name}: the best "
        f"{len(result.best)} of {result.tried:,} layouts that run, of which "
        f"{result.tried - result.out_of_memory:,} fit {best.gpu_memory_gib:g} GiB."
    )
    table = _table(
        "", "tensor", "pipeline", "virtual", "sequence", "data", "zero", "micro", "recompute",
        "tokens/s", "days", "overheads and memory",
    )  # fmt: skip
    for position, estimate in enumerate(result.best, 1):
        parallel, recipe = estimate.recipe.parallel, estimate.recipe
        table.add_row(
            str(position), str(parallel.tensor), str(parallel.pipeline),
            str(parallel.virtual_pipeline), "yes" if parallel.sequence else "no",
            str(estimate.replicas), str(recipe.optim.zero_stage), str(recipe.train.micro_batch),
            recipe.train.recompute, f"{estimate.tokens_per_second:,.0f}", f"{estimate.days:.1f}",
            explain_losses(estimate),
        )  # fmt: skip
    console.print(table)
    console.print("Overrides for the first: " + " ".join(layout_overrides(best)))


def _headline(estimate: Estimate) -> str:
    recipe, parallel = estimate.recipe, estimate.recipe.parallel
    return (
        f"{recipe.run.name}: {estimate.num_parameters / 1e9:.3g}B weights on "
        f"{estimate.world_size} x {estimate.gpu.name} ({estimate.gpu_memory_gib:g} GiB): "
        f"tensor {parallel.tensor}, pipeline {parallel.pipeline} x "
        f"{parallel.virtual_pipeline}, data {estimate.replicas}, ZeRO {recipe.optim.zero_stage}, "
        f"{estimate.micro_batches} micro-batches of {recipe.train.micro_batch}, recompute "
        f"{recipe.train.recompute}"
    )


def _memory_table(estimate: Estimate) -> Table:
    table = _table("pipeline stage", "layers", *MEMORY_COLUMNS)
    for rank, chunks in enumerate(chunks_by_rank(estimate.recipe)):
        memory, layers = estimate.memory[rank], sum(len(chunk.layers) for chunk in chunks)
        values = asdict(memory) | {"total": memory.total}
        cells = (f"{gib(values[name]):.2f}" for name in MEMORY_COLUMNS)
        table.add_row(str(rank), str(layers), *cells)
    return table


def _figures_table(estimate: Estimate) -> Table:
    time = estimate.step_time(one_stream=False)
    sent = {name: gib(value) for name, value in estimate.bytes_sent_per_step().items()}
    model, hardware = estimate.model_flops(), estimate.hardware_flops()
    mfu, hfu = (100 * estimate.utilization(flops) for flops in (model, hardware))
    bubble = 100 * time.bubble / time.total
    rows = {
        "model FLOPs per step": f"{model:.3e}  (MFU {mfu:.0f} %)",
        "hardware FLOPs per step": f"{hardware:.3e}  (HFU {hfu:.0f} %)",
        "one-stream steps": f"{100 * estimate.one_stream_share:.0f} % (left to right)",
        "two-stream step": f"{time.total:.2f} s",
        "  kernels": f"{time.compute:.2f} s",
        "  tensor-parallel communication": f"{time.tensor:.2f} s, {sent['tensor']:.1f} GiB a rank",
        "  pipeline communication": f"{time.pipeline:.2f} s, {sent['pipeline']:.1f} GiB",
        "  pipeline bubble": f"{time.bubble:.2f} s, {bubble:.1f} %",
        "  data-parallel communication": f"{time.data:.2f} s, {sent['data']:.1f} GiB",
        "  AdamW": f"{time.update:.2f} s",
        "tokens per second": f"{estimate.tokens_per_second:,.0f}",
        "whole run": f"{estimate.days:.2f} days, {estimate.recipe.train.steps:,} steps",
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


def _write_json(path: Path | None, content: object) -> None:
    if path is not None:
        atomic_write_json(path, content, indent=2)
