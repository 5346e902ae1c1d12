"""One step: every target weighs the same, whatever the micro-batch and rank it is in."""

import copy
import math
import time
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from megatron.core.process_groups_config import ProcessGroupCollection

from armd_scale.config.schema import OptimConfig, ParallelConfig
from armd_scale.data.batch import ArmdBatch
from armd_scale.model.armd_model import ArmdModel
from armd_scale.model.model_chunks import ModelChunks
from armd_scale.optim.zero_engine import OptimizerState, ZeroEngine
from armd_scale.train.step import StepResult, StepRunner
from tests.support.networks import LLAMA, batch_of, build
from tests.support.spawn import run_on_ranks
from tests.support.windows import draw_windows

pytestmark = pytest.mark.slow

# Windows of 17 tokens in which 16, 14, 9 and 15 are targets.
LENGTHS = [(17,), (8, 6, 3), (1, 2, 3, 1, 2, 3, 1, 4), (9, 8)]


def windows(indices: Sequence[int]) -> ArmdBatch:
    """Packed windows, by index, as one micro-batch."""
    drawn = [draw_windows("strided-ar:2", LENGTHS[i], count=1, seed=i) for i in indices]
    tokens, block = (
        torch.cat([torch.from_numpy(getattr(w, name)) for w in drawn]).numpy()
        for name in ("tokens", "block")
    )
    return batch_of(tokens, block, [LENGTHS[i] for i in indices])


def optim(stage: int) -> OptimConfig:
    return OptimConfig(warmup_steps=1, schedule="constant", zero_stage=stage, eps=1e-5)  # type: ignore[arg-type]


def one_step(
    groups: ProcessGroupCollection, batches: Sequence[ArmdBatch], stage: int = 1
) -> tuple[StepResult, ZeroEngine]:
    network = build(LLAMA, groups)
    engine = ZeroEngine(ModelChunks([network]), optim(stage), precision="fp32", groups=groups)
    return one_more_step(engine, batches), engine


def expected(network: ArmdModel) -> tuple[float, float]:
    """Mean loss over all targets of the four windows, and the norm of its gradient."""
    total, count = torch.zeros(()), 0
    for index in range(4):
        batch = windows([index])
        total = total + network(batch)[batch.is_target].sum()
        count += int(batch.is_target.sum())
    assert count == 16 + 14 + 9 + 15
    (total / count).backward()
    norms = [p.grad.norm() for p in network.parameters() if p.grad is not None]
    return (total / count).item(), torch.stack(norms).norm().item()


@pytest.mark.parametrize("micro_batches", [[[0, 1, 2, 3]], [[0, 1], [2, 3]], [[0], [1], [2], [3]]])
def test_every_target_weighs_the_same(
    groups: ProcessGroupCollection, micro_batches: list[list[int]]
) -> None:
    loss, norm = expected(build(LLAMA, groups))
    result, _ = one_step(groups, [windows(indices) for indices in micro_batches])
    assert result.tokens == 54
    assert result.loss == pytest.approx(loss, abs=1e-6)
    assert result.grad_norm == pytest.approx(norm, rel=1e-5)
    assert 0 < result.seconds < 60


def half_a_step(
    groups: ProcessGroupCollection, stage: int
) -> tuple[float, float, int, dict[str, torch.Tensor]]:
    micro_batches = [[0], [1]] if groups.dp.rank() == 0 else [[2], [3]]
    result, engine = one_step(groups, [windows(indices) for indices in micro_batches], stage)
    return result.loss, result.grad_norm, result.tokens, engine.export_state().master


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_ranks_take_the_step_of_one_process(groups: ProcessGroupCollection, stage: int) -> None:
    result, engine = one_step(groups, [windows([0, 1, 2, 3])])
    weights = engine.export_state().master
    for loss, norm, tokens, master in run_on_ranks(half_a_step, 2, stage):
        assert loss == pytest.approx(result.loss, abs=1e-6)
        assert norm == pytest.approx(result.grad_norm, rel=1e-5)
        assert tokens == result.tokens
        for name, tensor in master.items():
            torch.testing.assert_close(tensor, weights[name], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_non_finite_loss_changes_nothing(groups: ProcessGroupCollection, stage: int) -> None:
    network = build(LLAMA, groups)
    with torch.no_grad():
        network.get_parameter("final_norm.weight")[0] = math.inf
    engine = ZeroEngine(ModelChunks([network]), optim(stage), precision="fp32", groups=groups)
    before = copy.deepcopy(engine.export_state())
    result = one_more_step(engine, [windows([0, 1])])
    assert result.skip_reason == "loss is nan"
    assert_equal(engine.export_state(), before)


def one_more_step(engine: ZeroEngine, batches: Sequence[ArmdBatch], **options: Any) -> StepResult:
    return StepRunner(engine).run(
        batches, learning_rate=1e-3, start_time=time.perf_counter(), **options
    )


def assert_equal(state: OptimizerState, expected: OptimizerState) -> None:
    assert state.num_updates == expected.num_updates
    pairs = [(state.master, expected.master)]
    pairs += [(state.moments[key], expected.moments[key]) for key in expected.moments]
    for tensors, expected_tensors in pairs:
        assert all(torch.equal(tensor, expected_tensors[name]) for name, tensor in tensors.items())


def skip_the_second_step(
    groups: ProcessGroupCollection, stage: int, precision: str
) -> tuple[bool, list[str | None], float, float]:
    """Take two good steps, once with a skipped one in between; the optimizer states must agree."""
    good = [windows([groups.dp.rank()])]
    bad = [windows([2 + groups.dp.rank()])]
    states, norms, reasons = [], [], []
    for with_bad in (False, True):
        network = build(LLAMA, groups).to(
            getattr(torch, {"fp32": "float32"}.get(precision, "bfloat16"))
        )
        engine = ZeroEngine(
            ModelChunks([network]), optim(stage), precision=precision, groups=groups
        )
        one_more_step(engine, good)
        if with_bad:
            result = one_more_step(engine, bad, check_loss=lambda loss: f"positive: {loss > 0}")
            reasons.append(result.skip_reason)
        norms.append(one_more_step(engine, good).grad_norm)
        states.append(engine.export_state())
    assert_equal(*states)
    return True, reasons, norms[0], norms[1]


@pytest.mark.parametrize(
    ("stage", "precision", "layout"),
    [
        (0, "fp32", ParallelConfig()),
        (1, "bf16", ParallelConfig(tensor=2)),
        (2, "fp32", ParallelConfig(tensor=2)),
        (2, "bf16", ParallelConfig()),
        (3, "fp32", ParallelConfig()),
        (3, "bf16", ParallelConfig(tensor=2)),
    ],
)
def test_a_skipped_step_leaves_no_trace(stage: int, precision: str, layout: ParallelConfig) -> None:
    for equal, reasons, norm, other_norm in run_on_ranks(
        skip_the_second_step, 2, stage, precision, parallel=layout
    ):
        assert equal
        assert reasons == ["positive: True"]
        assert norm == other_norm
