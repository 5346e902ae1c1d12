"""A workload small enough for tests."""

from armd_scale.bench.suites.step import Workload
from armd_scale.config.resolve import resolve_model
from armd_scale.config.schema import ModelConfig

TINY = Workload(
    model=resolve_model(
        ModelConfig(
            layers=2,
            hidden=16,
            ffn_hidden=32,
            heads=2,
            kv_heads=1,
            vocab_size=64,
            two_stream_layers=2,  # with one, the last one, ARMD computes no more than AR
        )
    ),
    seq_length=8,
    micro_batch=2,
)
