"""Bytes really held under each ZeRO stage, against the ZeRO paper's proportions."""

import pytest
from megatron.core.process_groups_config import ProcessGroupCollection

from armd_scale.bench.suites.memory import (
    STAGES,
    MemoryBreakdown,
    held_by_stage,
    paper_bytes,
    table,
)
from armd_scale.config.schema import ModelConfig
from armd_scale.parallel.environment import read_environment
from tests.support.spawn import run_on_ranks

KINDS = ("weights", "gradients", "optimizer")
# Matrices are above the size below which ZeRO 3 keeps a parameter whole.
SMALL = ModelConfig(
    layers=1,
    hidden=384,
    ffn_hidden=512,
    heads=6,
    vocab_size=512,
    two_stream_layers=1,
    max_anchor_gap=8,
)


def held(groups: ProcessGroupCollection) -> list[MemoryBreakdown]:
    return held_by_stage(read_environment(), groups, model=SMALL, stages=STAGES)


def test_every_stage_holds_what_the_paper_says() -> None:
    rows = table(run_on_ranks(held, 2), model=SMALL, stages=STAGES)
    ratios = {(row["zero_stage"], kind): row[f"{kind}_ratio"] for row in rows for kind in KINDS}
    assert ratios == pytest.approx(dict.fromkeys(ratios, 1.0), rel=0.05)


def test_the_papers_example() -> None:
    # Rajbhandari et al., figure 1: 7.5 billion weights on 64 processes, in GB.
    for stage, total in enumerate((120, 31.4, 16.6, 1.9)):
        paper = paper_bytes(7_500_000_000, stage=stage, ranks=64, precision="bf16")
        in_all = paper.weights + paper.gradients + paper.optimizer
        assert in_all / 1e9 == pytest.approx(total, abs=0.06)
