"""Every ZeRO stage against plain torch AdamW; states that leave one engine and enter another."""

import copy
import math
from dataclasses import dataclass

import pytest
import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor

from armd_scale.config.schema import OptimConfig
from armd_scale.data.batch import ArmdBatch
from armd_scale.model.armd_model import ArmdModel
from armd_scale.model.model_chunks import ModelChunks
from armd_scale.optim.param_groups import parameter_groups
from armd_scale.optim.zero_engine import MOMENTS, OptimizerState, ZeroEngine
from tests.support.networks import LLAMA, build
from tests.support.windows import draw_windows

STAGES = [0, 1, 2, 3]
RATES = [1e-3, 3e-3, 2e-3, 1e-3, 5e-4]


def optim(stage: int = 1, **changes: object) -> OptimConfig:
    """Clips every step: gradients of the perturbed network have norms above 0.5.

    Epsilon is large, because a gradient that is zero but for rounding would else be scaled to one.
    """
    values = {"warmup_steps": 1, "schedule": "constant", "clip_grad": 0.5, "epsilon": 1e-5}
    return OptimConfig(zero_stage=stage, **{**values, **changes})  # type: ignore[arg-type]


def batches(step: int) -> list[ArmdBatch]:
    """Two micro-batches."""
    return [draw_windows("strided-ar:2", (12,), seed=2 * step + i).batch() for i in range(2)]


@dataclass
class Course:
    """What steps did."""

    losses: list[float]
    norms: list[float]


def advance(engine: ZeroEngine, steps: range) -> Course:
    course = Course([], [])
    for step in steps:
        total = 0.0
        with engine.accumulate():
            for batch in batches(step):
                loss = engine(batch).mean() / 2
                loss.backward()
                total += loss.item()
        course.losses.append(total)
        course.norms.append(engine.step(RATES[step]))
    return course


def advance_plainly(network: ArmdModel, config: OptimConfig, steps: range) -> Course:
    """The same by torch alone."""
    adam = torch.optim.AdamW(
        parameter_groups(network, config), lr=0.0, betas=config.betas, eps=config.eps
    )
    course = Course([], [])
    for step in steps:
        losses = [network(batch).mean() / 2 for batch in batches(step)]
        adam.zero_grad()
        torch.stack(losses).sum().backward()
        limit = config.clip_grad or math.inf
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), limit)
        for group in adam.param_groups:
            group["lr"] = RATES[step]
        adam.step()
        course.losses.append(sum(loss.item() for loss in losses))
        course.norms.append(float(norm))
    return course


def start(
    network: ArmdModel, groups: ProcessGroupCollection, config: OptimConfig, precision: str = "fp32"
) -> ZeroEngine:
    return ZeroEngine(ModelChunks([network]), config, precision=precision, groups=groups)


def copied(state: OptimizerState) -> OptimizerState:
    return copy.deepcopy(state)


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize("clip_grad", [0.5, 0.0])
@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_updates_as_torch_does(
    groups: ProcessGroupCollection, stage: int, clip_grad: float
) -> None:
    config = optim(stage, clip_grad=clip_grad)
    plain = build(LLAMA, groups)
    expected = advance_plainly(plain, config, range(3))
    assert min(expected.norms) > 0.6
    engine = start(build(LLAMA, groups), groups, config)
    found = advance(engine, range(3))
    assert found.losses == pytest.approx(expected.losses, abs=1e-6)
    assert found.norms == pytest.approx(expected.norms, rel=1e-6)
    state = engine.export_state()
    assert state.steps == 3
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(state.master[name], parameter.data, atol=1e-6, rtol=1e-6)
    assert_equal(state.weights(engine.network), state.master)


CASES = [(stage, "fp32") for stage in STAGES] + [(stage, "bf16") for stage in STAGES[1:]]


@pytest.mark.parametrize(("stage", "precision"), CASES)
def test_a_state_goes_on_in_another_engine(
    groups: ProcessGroupCollection, stage: int, precision: str
) -> None:
    config = optim(stage)
    engine = start(build(LLAMA, groups), groups, config, precision)
    advance(engine, range(2))
    state = copied(engine.export_state())
    weights = copied(state).weights(engine.network)
    expected = advance(engine, range(2, 5))

    network = build(LLAMA, groups, seed=9)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(weights[name])
    other = start(network, groups, config, precision)
    other.import_state(state)
    assert other.export_state().steps == 2
    assert advance(other, range(2, 5)) == expected
    one, two = engine.export_state(), other.export_state()
    assert one.steps == two.steps == 5
    assert_equal(one.master, two.master)
    for key in MOMENTS:
        assert_equal(one.moments[key], two.moments[key])
        assert all(tensor.any() for tensor in one.moments[key].values())


def test_a_state_of_one_stage_goes_on_in_another(groups: ProcessGroupCollection) -> None:
    found = []
    for stage in STAGES:
        engine = start(build(LLAMA, groups), groups, optim(1))
        advance(engine, range(2))
        state = copied(engine.export_state())
        network = build(LLAMA, groups)
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                parameter.copy_(state.master[name])
        other = start(network, groups, optim(stage))
        other.import_state(state)
        found.append(advance(other, range(2, 5)).losses)
    for losses in found[1:]:
        assert losses == pytest.approx(found[0], abs=1e-6)


def test_bf16_keeps_its_master_weights_in_fp32(groups: ProcessGroupCollection) -> None:
    engine = start(build(LLAMA, groups), groups, optim(1), "bf16")
    advance(engine, range(1))
    state = engine.export_state()
    assert {tensor.dtype for tensor in state.master.values()} == {torch.float32}
    rounded = {name: tensor.bfloat16() for name, tensor in state.master.items()}
    assert_equal(rounded, {name: p.data for name, p in engine.network.parameters_by_name().items()})
    assert any(not torch.equal(rounded[name].float(), state.master[name]) for name in rounded)


@pytest.mark.parametrize("stage", STAGES)
def test_a_gradient_that_is_not_finite_changes_nothing(
    groups: ProcessGroupCollection, stage: int
) -> None:
    engine = start(build(LLAMA, groups), groups, optim(stage))
    advance(engine, range(1))
    before = copied(engine.export_state())
    with engine.accumulate():
        (engine(batches(1)[0]).mean() * torch.inf).backward()
    assert not math.isfinite(engine.step(1e-3))
    after = engine.export_state()
    assert_equal(before.master, after.master)
    for key in MOMENTS:
        assert_equal(before.moments[key], after.moments[key])
