"""Which layers a pipeline stage holds, divided by cost.

A two-stream layer costs about twice an upper one, and the head a layer or more, so equal numbers of
layers would leave the upper stages waiting. Layers stay in order; the cut minimises the costliest
stage, which sets the pace of the pipeline.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from armd_scale.config.flops import head_flops, layer_flops
from armd_scale.config.resolve import ResolvedModel
from armd_scale.config.schema import ModelConfig, ParallelConfig


@dataclass(frozen=True)
class PipelineStage:
    """A contiguous part of the network: one chunk of one pipeline rank."""

    layers: range
    """Layers by their number in the whole network."""
    is_first: bool
    """Whether it embeds tokens."""
    is_last: bool
    """Whether it holds the head."""


def single_stage(model: ModelConfig) -> PipelineStage:
    """The only stage of a network that is not split."""
    return PipelineStage(range(model.layers), is_first=True, is_last=True)


def stages_of_rank(
    model: ResolvedModel, parallel: ParallelConfig, *, seq_length: int, rank: int
) -> list[PipelineStage]:
    """The chunks of a pipeline rank, in the order in which data passes them.

    Interleaved, chunk v of rank r is stage v x pipeline + r of the whole.
    """
    stages = all_stages(model, parallel, seq_length=seq_length)
    return stages[rank :: parallel.pipeline]


def all_stages(
    model: ResolvedModel, parallel: ParallelConfig, *, seq_length: int
) -> list[PipelineStage]:
    """All stages in the order of data flow, cut so that the costliest is as cheap as can be."""
    count = parallel.pipeline * parallel.virtual_pipeline
    cuts = balance_partition(layer_costs(model, seq_length), count)
    return [
        PipelineStage(range(start, stop), is_first=number == 0, is_last=number == count - 1)
        for number, (start, stop) in enumerate(zip([0, *cuts], [*cuts, model.layers], strict=True))
    ]


def layer_costs(model: ResolvedModel, seq_length: int) -> list[int]:
    """Forward FLOPs per target of each layer, the head's added to the last one's."""
    costs = list(layer_flops(model, seq_length))
    costs[-1] += head_flops(model, model.vocab_size)
    return costs


def bubble_fraction(costs: Sequence[int], parallel: ParallelConfig, micro_batches: int) -> float:
    """Share of time that the pipeline's ranks wait, with 1F1B, for stages of unequal cost.

    A step takes as long as its costliest stage has work, plus one pass of all others to fill and
    drain the pipeline; interleaving divides the pass by the number of chunks.

    Args:
        costs: of every stage, in the order of data flow.
        parallel: the layout.
        micro_batches: of one step.
    """
    pipeline, chunks = parallel.pipeline, parallel.virtual_pipeline
    by_rank = [sum(costs[rank::pipeline]) for rank in range(pipeline)]
    slowest = max(by_rank)
    step = micro_batches * slowest + (sum(by_rank) - slowest) / chunks
    return 1 - micro_batches * sum(by_rank) / (pipeline * step)


def format_partition(
    stages: Sequence[PipelineStage],
    costs: Sequence[int],
    *,
    parallel: ParallelConfig,
    micro_batches: int,
) -> str:
    """One line for the log: the layers and the share of work of every pipeline rank, the bubble.

    Args:
        stages: of the whole network, in the order of data flow.
        costs: of every layer, from `layer_costs`.
        parallel: the layout.
        micro_batches: of one step.
    """
    by_stage = [sum(costs[layer] for layer in stage.layers) for stage in stages]
    parts = []
    for rank in range(parallel.pipeline):
        chunks = slice(rank, None, parallel.pipeline)
        layers = ", ".join(_span(stage.layers) for stage in stages[chunks])
        share = 100 * sum(by_stage[chunks]) / sum(by_stage)
        parts.append(f"stage {rank}: layers {layers} ({share:.0f} % of the work)")
    bubble = 100 * bubble_fraction(by_stage, parallel, micro_batches)
    return "; ".join([*parts, f"bubble {bubble:.1f} %"])


def _span(layers: range) -> str:
    first, last = layers[0], layers[-1]
    return f"{first}" if first == last else f"{first}-{last}"


def balance_partition(costs: Sequence[int], count: int) -> list[int]:
    """Where to cut a sequence into `count` non-empty runs, so that the costliest run is cheapest.

    Dynamic programming over (runs, end): the best cut of a prefix into k runs extends the best cut
    of a shorter prefix into k - 1.
    """
    length = len(costs)
    assert 1 <= count <= length, (count, length)
    sums = [0]
    for cost in costs:
        sums.append(sums[-1] + cost)
    best = [[sums[end] for end in range(length + 1)]]
    last_cut: list[list[int]] = [[0] * (length + 1)]
    for runs in range(2, count + 1):
        row, boundaries = [0] * (length + 1), [0] * (length + 1)
        for end in range(runs, length + 1):
            row[end], boundaries[end] = min(
                (max(best[-1][cut], sums[end] - sums[cut]), cut) for cut in range(runs - 1, end)
            )
        best.append(row)
        last_cut.append(boundaries)
    boundaries, end = [], length
    for runs in range(count, 1, -1):
        end = last_cut[runs - 1][end]
        boundaries.append(end)
    return boundaries[::-1]
