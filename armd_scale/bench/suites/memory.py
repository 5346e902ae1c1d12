"""Bytes of weights, gradients and optimizer state per process under each ZeRO stage.

Rajbhandari et al. (arXiv 1910.02054, section 5) count, for a model of Psi weights on Nd processes,
2 Psi bytes of bf16 weights, 2 Psi of gradients and 12 Psi of optimizer state (fp32 weights and two
moments); stage 1 divides the last by Nd, stage 2 the gradients too, stage 3 the weights too. Here
bytes are measured: when the last backward pass of a real step ends, all live tensors of the process
are found, and each storage counts once. Everything that is neither weights nor optimizer state nor
a buffer of fixed size counts as gradients.
"""

import gc
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor

from armd_scale.bench.launch import run_on_ranks
from armd_scale.bench.table import Row
from armd_scale.config.derived import num_parameters, padded_vocab_size
from armd_scale.config.resolve import ResolvedModel, resolve_model
from armd_scale.config.schema import ModelConfig, OptimConfig, ParallelConfig
from armd_scale.data.batch import ArmdBatch, make_batch
from armd_scale.model.armd_model import ArmdModel
from armd_scale.model.model_chunks import ModelChunks
from armd_scale.model.spec import transformer_config
from armd_scale.model.weight_init import init_weights
from armd_scale.optim.zero_engine import ZeroEngine
from armd_scale.parallel.environment import DistributedEnv

ZeroStage = Literal[0, 1, 2, 3]
STAGES: tuple[ZeroStage, ...] = (0, 1, 2, 3)
# Every matrix has over 100,000 elements: DeepSpeed's stage 3 does not split smaller parameters. In
# a real model these are the norms, about a thousandth of all weights.
MODEL = resolve_model(
    ModelConfig(
        layers=2, hidden=512, ffn_hidden=1536, heads=8, vocab_size=4096, two_stream_layers=1
    )
)
SEQ_LENGTH = 32
MICRO_BATCHES = 2


@dataclass(frozen=True, kw_only=True)
class MemoryBreakdown:
    """Bytes on one process, by use."""

    weights: int | float
    gradients: int | float
    """At the end of the last backward pass of a step."""
    optimizer: int | float
    buffers: int | float = 0.0
    """DeepSpeed's reduction bucket, of fixed size; the paper counts it separately too."""


def paper_bytes(weights: int, *, stage: int, ranks: int, precision: str) -> MemoryBreakdown:
    """Return the ZeRO paper's byte counts; at stage 0 in fp32 there is no separate master copy.

    Args:
        weights: Psi, the number of weights of the whole model.
        stage: ZeRO stage.
        ranks: Nd, the data-parallel size.
        precision: "bf16" or "fp32".
    """
    width = 2 if precision == "bf16" else 4
    # Two moments of 4 bytes, and with bf16 weights their fp32 master copy. At stage 0 in fp32 the
    # weights are their own master copy.
    state = 8 if (stage, precision) == (0, "fp32") else 12
    return MemoryBreakdown(
        weights=width * weights / (ranks if stage >= 3 else 1),
        gradients=width * weights / (ranks if stage >= 2 else 1),
        optimizer=state * weights / (ranks if stage >= 1 else 1),
    )


def measure_memory(ranks: int) -> list[Row]:
    """Start `ranks` processes and measure one ZeRO stage after another on them."""
    measure = partial(measure_stages, model=MODEL, stages=STAGES)
    return table(run_on_ranks(measure, ranks, ParallelConfig()), model=MODEL, stages=STAGES)


def table(
    by_rank: Sequence[Sequence[MemoryBreakdown]],
    *,
    model: ResolvedModel,
    stages: Sequence[ZeroStage],
) -> list[Row]:
    """Return a row for each stage: the largest figure of all ranks, the paper's, and their ratio.

    Args:
        by_rank: the breakdown of each rank at each stage.
        model: the measured model.
        stages: the ZeRO stages.
    """
    stored = padded_vocab_size(model.vocab_size, 1)
    weights = num_parameters(model, stored)
    rows = []
    for stage, breakdowns in zip(stages, zip(*by_rank, strict=True), strict=True):
        precision = _precision(stage)
        paper = paper_bytes(weights, stage=stage, ranks=len(by_rank), precision=precision)
        row: Row = {"zero_stage": stage, "precision": precision}
        for kind in ("weights", "gradients", "optimizer"):
            measured = max(getattr(breakdown, kind) for breakdown in breakdowns)
            expected = getattr(paper, kind)
            row[f"{kind}_mib"] = measured / 2**20
            row[f"{kind}_paper_mib"] = expected / 2**20
            row[f"{kind}_ratio"] = measured / expected
        buffers = max(breakdown.buffers for breakdown in breakdowns)
        rows.append({**row, "buffers_mib": buffers / 2**20})
    return rows


def _precision(stage: int) -> str:
    # bf16 weights need the fp32 master weights that ZeRO keeps.
    return "bf16" if stage else "fp32"


def measure_stages(
    environment: DistributedEnv,
    groups: ProcessGroupCollection,
    *,
    model: ResolvedModel,
    stages: Sequence[ZeroStage],
) -> list[MemoryBreakdown]:
    """Measure this process at each stage, one engine after another."""
    return [_measure(environment, groups, model, stage) for stage in stages]


def _measure(
    environment: DistributedEnv,
    groups: ProcessGroupCollection,
    model: ResolvedModel,
    stage: ZeroStage,
) -> MemoryBreakdown:
    batch = _batch(model, seed=environment.rank).to(environment.device)
    # What is alive before the engine (the batch, leftovers of the stage before) is not part of it.
    existing = _storages(_live_tensors()).keys()
    engine = _build_engine(environment, groups, model, stage)
    # DeepSpeed allocates some of its buffers in the first step, so the second one is measured.
    with engine.accumulate():
        engine(batch).mean().backward()
    engine.step(1e-3)
    # Taken inside the context, after the last backward pass: the exit reduces the gradients, which
    # changes what is held.
    with engine.accumulate():
        for _ in range(MICRO_BATCHES):
            engine(batch).mean().backward()
        return _breakdown(engine, existing)


def _breakdown(engine: ZeroEngine, existing: Set[int]) -> MemoryBreakdown:
    """Return what an engine holds; `existing` are storages that were there before it."""
    weights = _storages(engine.weight_tensors())
    state = _storages(engine.optimizer_tensors())
    buffers = _storages(engine.reduction_buffers())
    everything = _storages(_live_tensors())
    gradients = everything.keys() - existing - weights.keys() - state.keys() - buffers.keys()
    return MemoryBreakdown(
        weights=sum(weights.values()),
        gradients=sum(everything[storage] for storage in gradients),
        # Stage 0 updates the weights themselves, which count as weights and not again here.
        optimizer=sum(state[storage] for storage in state.keys() - weights.keys()),
        buffers=sum(buffers.values()),
    )


def _storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Return the bytes of the storages of tensors by address; shared storages appear once."""
    # By storage, because under stages 1 and 2 DeepSpeed makes the parameters views of one flat
    # tensor: every view has the storage of all.
    storages = (tensor.untyped_storage() for tensor in tensors)
    return {storage.data_ptr(): storage.nbytes() for storage in storages if storage.nbytes() > 0}


def _live_tensors() -> Iterator[Tensor]:
    """Yield every tensor that Python's garbage collector tracks, and their gradients."""
    gc.collect()
    for item in gc.get_objects():
        # Not isinstance: it reads __class__, which makes lazily imported modules import themselves.
        if issubclass(type(item), Tensor) and item.layout is torch.strided:
            yield item
            if item.is_leaf and item.grad is not None:
                yield item.grad


def _build_engine(
    environment: DistributedEnv,
    groups: ProcessGroupCollection,
    model: ResolvedModel,
    stage: ZeroStage,
) -> ZeroEngine:
    config = transformer_config(model, ParallelConfig())
    network = ArmdModel(model, config, groups=groups)
    init_weights(network, seed=0)
    return ZeroEngine(
        ModelChunks([network]).to(environment.device),
        OptimConfig(zero_stage=stage, warmup_steps=1, schedule="constant"),
        precision=_precision(stage),
        groups=groups,
    )


def _batch(model: ResolvedModel, *, seed: int) -> ArmdBatch:
    """Return one window of random tokens, left to right."""
    size = (1, SEQ_LENGTH + 1)
    return make_batch(
        np.random.default_rng(seed).integers(0, model.vocab_size, size=size),
        np.arange(SEQ_LENGTH + 1)[None],
        lengths=[(SEQ_LENGTH + 1,)],
        sample_index=np.zeros(1, dtype=np.int64),
    )
