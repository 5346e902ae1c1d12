"""Partition of layers over pipeline stages, balanced by cost.

A two-stream layer costs about twice an upper layer, and the LM head as much as several layers, so
equal numbers of layers would leave some stages idle. Layers stay in order; the partition minimizes
the cost of the most expensive stage, which sets the pace of the pipeline.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from armd_scale.config.flops import head_flops, layer_flops
from armd_scale.config.resolve import ResolvedModel
from armd_scale.config.schema import ModelConfig, ParallelConfig


@dataclass(frozen=True)
class PipelineStage:
    """A contiguous part of the network: one model chunk of one pipeline rank."""

    layers: range
    """Layer indices in the whole network."""
    is_first: bool
    """Whether it holds the embedding."""
    is_last: bool
    """Whether it holds the LM head."""


def single_stage(model: ModelConfig) -> PipelineStage:
    """Return the only stage of a network without pipeline parallelism."""
    return PipelineStage(range(model.layers), is_first=True, is_last=True)


def stages_of_rank(
    model: ResolvedModel, parallel: ParallelConfig, *, seq_length: int, rank: int
) -> list[PipelineStage]:
    """Return the model chunks of a pipeline rank in the order of data flow.

    Under the interleaved schedule (arXiv 2104.04473, section 2.2), chunk v of rank r is stage
    v * pipeline + r.
    """
    # Every rank computes the same partition; nothing is communicated.
    stages = all_stages(model, parallel, seq_length=seq_length)
    return stages[rank :: parallel.pipeline]


def all_stages(
    model: ResolvedModel, parallel: ParallelConfig, *, seq_length: int
) -> list[PipelineStage]:
    """Return all stages in the order of data flow, with the most expensive as cheap as possible."""
    num_stages = parallel.pipeline * parallel.virtual_pipeline
    boundaries = balance_partition(layer_costs(model, seq_length), num_stages)
    spans = zip([0, *boundaries], [*boundaries, model.layers], strict=True)
    return [
        PipelineStage(range(start, stop), is_first=index == 0, is_last=index == num_stages - 1)
        for index, (start, stop) in enumerate(spans)
    ]


def layer_costs(model: ResolvedModel, seq_length: int) -> list[int]:
    """Return the forward FLOPs per target of each layer; the last one includes the LM head."""
    costs = list(layer_flops(model, seq_length))
    costs[-1] += head_flops(model, model.vocab_size)
    return costs


def bubble_fraction(
    costs: Sequence[int], parallel: ParallelConfig, num_micro_batches: int
) -> float:
    """Return the fraction of time that pipeline ranks wait under 1F1B, for unequal stages.

    A step takes as long as the work of the most expensive rank, plus one pass through all other
    ranks to fill and drain the pipeline; interleaving divides that pass by the number of chunks.
    For p equal ranks, m micro-batches and v chunks this is the usual bubble,
    ((p - 1) / v) / (m + (p - 1) / v) (Narayanan et al., arXiv 2104.04473).

    Args:
        costs: cost of every stage, in the order of data flow.
        parallel: the layout.
        num_micro_batches: micro-batches per step.
    """
    num_ranks, num_chunks = parallel.pipeline, parallel.virtual_pipeline
    rank_costs = [sum(costs[rank::num_ranks]) for rank in range(num_ranks)]
    slowest = max(rank_costs)
    step = num_micro_batches * slowest + (sum(rank_costs) - slowest) / num_chunks
    return 1 - num_micro_batches * sum(rank_costs) / (num_ranks * step)


def format_partition(
    stages: Sequence[PipelineStage],
    costs: Sequence[int],
    *,
    parallel: ParallelConfig,
    num_micro_batches: int,
) -> str:
    """Return one log line: layers and share of work of every pipeline rank, and the bubble.

    Args:
        stages: stages of the whole network, in the order of data flow.
        costs: cost of every layer, from `layer_costs`.
        parallel: the layout.
        num_micro_batches: micro-batches per step.
    """
    stage_costs = [sum(costs[layer] for layer in stage.layers) for stage in stages]
    ranks = []
    for rank in range(parallel.pipeline):
        chunks = slice(rank, None, parallel.pipeline)
        layers = ", ".join(_format_range(stage.layers) for stage in stages[chunks])
        percent = 100 * sum(stage_costs[chunks]) / sum(stage_costs)
        ranks.append(f"stage {rank}: layers {layers} ({percent:.0f} % of the work)")
    bubble = 100 * bubble_fraction(stage_costs, parallel, num_micro_batches)
    return "; ".join([*ranks, f"bubble {bubble:.1f} %"])


def _format_range(layers: range) -> str:
    first, last = layers[0], layers[-1]
    return f"{first}" if first == last else f"{first}-{last}"


def balance_partition(costs: Sequence[int], num_parts: int) -> list[int]:
    """Partition a sequence into contiguous non-empty parts with the smallest maximal cost.

    Dynamic programming over (number of parts, end): the best partition of costs[:end] into k parts
    extends the best partition of a shorter prefix into k - 1 parts. O(num_parts * n^2), which is
    nothing for the at most hundreds of layers of a network.

    Args:
        costs: non-negative costs.
        num_parts: number of parts, at most len(costs).

    Returns:
        The num_parts - 1 inner boundaries: part k is costs[boundaries[k - 1] : boundaries[k]].
    """
    length = len(costs)
    assert 1 <= num_parts <= length, (num_parts, length)
    prefix_sums = [0]
    for cost in costs:
        prefix_sums.append(prefix_sums[-1] + cost)
    # best_max[k - 1][end]: smallest possible maximum over partitions of costs[:end] into k parts;
    # last_start[k - 1][end]: where the last part of such a partition starts.
    best_max = [prefix_sums]
    last_start = [[0] * (length + 1)]
    for k in range(2, num_parts + 1):
        maxima, starts = [0] * (length + 1), [0] * (length + 1)
        for end in range(k, length + 1):
            maxima[end], starts[end] = min(
                (max(best_max[-1][start], prefix_sums[end] - prefix_sums[start]), start)
                for start in range(k - 1, end)
            )
        best_max.append(maxima)
        last_start.append(starts)
    # Walk back from the whole sequence, one part at a time.
    boundaries, end = [], length
    for k in range(num_parts, 1, -1):
        end = last_start[k - 1][end]
        boundaries.append(end)
    return boundaries[::-1]
