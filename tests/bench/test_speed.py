"""The speed benchmarks compare what computes the same."""

import dataclasses

import pytest
import torch

from armd_scale.bench import cli as commands
from armd_scale.bench.suites.attention import compare_attention, ways_of
from armd_scale.bench.suites.matmul import measure_products
from armd_scale.bench.suites.scaling import SIZES, time_growth
from armd_scale.bench.suites.step import SHAPES, Shape, steps_of, time_steps
from armd_scale.bench.timing import Timings, ratio
from armd_scale.config.schema import ModelConfig

TINY = Shape(
    model=ModelConfig(layers=2, hidden=16, ffn_hidden=32, heads=2, kv_heads=1, vocab_size=64),
    seq_length=8,
    micro_batch=2,
)


def test_every_way_of_attention_is_the_same_attention():
    draw = torch.Generator().manual_seed(0)
    q = torch.randn(2, 16, 1, 4, 8, generator=draw, dtype=torch.float64, requires_grad=True)
    k, v = (
        torch.randn(1, 2, 16, 8, generator=draw, dtype=torch.float64, requires_grad=True)
        for _ in range(2)
    )
    found = {name: forward() for name, forward in ways_of(q, k, v).items()}
    folded = found["folded"].flatten(0, 1)  # content rows, then query rows
    for name in ("two_masks", "doubled"):
        torch.testing.assert_close(found[name].permute(2, 0, 1, 3), folded)
    torch.testing.assert_close(found["ar"][0], found["folded"][0])


def test_rows_of_attention():
    rows = compare_attention(seq_lengths=(16,), heads=2, kv_heads=1, head_dim=8, runs=1)
    assert [row["way"] for row in rows] == ["ar", "folded", "two_masks", "doubled"]
    assert rows[1]["ratio"] == 1


def test_every_network_takes_its_step(groups):
    steps = steps_of(TINY, groups, device=torch.device("cpu"))
    assert set(steps) == {"ar", "armd", "armd_dense", "armd_l2r", "megatron_gpt", "hf_llama"}
    for step in steps.values():
        step()


def test_a_step_has_shares_of_its_operators(groups):
    rows = time_steps(TINY, groups, device=torch.device("cpu"), runs=1, profile=True)
    for row in rows:
        assert 0 < row["matrix products share"] < 1
        assert (row["attention share"] > 0) == (row["way"] != "megatron_gpt")
        assert 0 < row["mfu"] < 1


def test_a_products_rate_is_beside_the_peak():
    (row,) = measure_products(runs=1, sizes=(64,))
    assert row["TFLOP/s"] == pytest.approx(2 * 64**3 / (row["median ms"] / 1e3) / 1e12)
    assert row["ratio"] == pytest.approx(row["TFLOP/s"] / row["peak of mfu, TFLOP/s"])


def test_commands_name_every_shape():
    assert tuple(SHAPES) == commands.SHAPES
    assert tuple(SIZES) == commands.GROWS


def test_growth_is_fitted_by_operations(groups):
    shapes = {n: dataclasses.replace(TINY, micro_batch=n) for n in (1, 2, 3)}
    rows = time_growth("micro_batch", shapes, groups, device=torch.device("cpu"), runs=1)
    assert [row["to"] for row in rows] == [1, 2, 3]
    assert all(row["10^9 operations"] > 0 for row in rows)


def test_a_ratio_is_the_median_over_turns():
    times = {"a": Timings(runs=(2.0, 9.0, 3.0)), "b": Timings(runs=(1.0, 3.0, 1.0))}
    assert ratio(times, "a", "b") == 3.0
