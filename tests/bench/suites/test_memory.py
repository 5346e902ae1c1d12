"""Measured bytes under each ZeRO stage, against the ZeRO paper's counts."""

import pytest
from megatron.core.process_groups_config import ProcessGroupCollection

from armd_scale.bench.suites.memory import (
    STAGES,
    MemoryBreakdown,
    measure_stages,
    paper_bytes,
    table,
)
from armd_scale.config.resolve import resolve_model
from armd_scale.config.schema import ModelConfig
from armd_scale.parallel.environment import read_environment
from tests.support.spawn import run_on_ranks

pytestmark = pytest.mark.slow

KINDS = ("weights", "gradients", "optimizer")
# Matrices are large enough for ZeRO 3 to split them.
SMALL = resolve_model(
    ModelConfig(
        layers=1,
        hidden=384,
        ffn_hidden=512,
        heads=6,
        vocab_size=512,
        two_stream_layers=1,
        max_anchor_gap=8,
    )
)


def measured(groups: ProcessGroupCollection) -> list[MemoryBreakdown]:
    return measure_stages(read_environment(), groups, model=SMALL, stages=STAGES)


def test_every_stage_holds_what_the_paper_counts() -> None:
    rows = table(run_on_ranks(measured, 2), model=SMALL, stages=STAGES)
    ratios = {(row["zero_stage"], kind): row[f"{kind}_ratio"] for row in rows for kind in KINDS}
    assert ratios == pytest.approx(dict.fromkeys(ratios, 1.0), rel=0.05)


def test_the_example_of_the_paper() -> None:
    # Rajbhandari et al., figure 1: 7.5 billion weights on 64 processes, in GB.
    for stage, total in enumerate((120, 31.4, 16.6, 1.9)):
        paper = paper_bytes(7_500_000_000, stage=stage, ranks=64, precision="bf16")
        all_bytes = paper.weights + paper.gradients + paper.optimizer
        assert all_bytes / 1e9 == pytest.approx(total, abs=0.06)
