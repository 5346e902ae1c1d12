"""Every ZeRO stage against torch's AdamW; export of a state and import into another engine."""

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
    """Return settings under which every step clips: gradient norms of the network exceed 0.5.

    eps is large, because Adam would scale a gradient that is zero up to rounding errors to 1.
    """
    values = {"warmup_steps": 1, "schedule": "constant", "clip_grad": 0.5, "eps": 1e-5}
    return OptimConfig(zero_stage=stage, **{**values, **changes})  # type: ignore[arg-type]


def batches(step: int) -> list[ArmdBatch]:
    """Return the two micro-batches of a step."""
    return [draw_windows("strided-ar:2", (12,), seed=2 * step + i).batch() for i in range(2)]


@dataclass
class Curve:
    """Loss and gradient norm by step."""

    losses: list[float]
    norms: list[float]


def train(engine: ZeroEngine, steps: range) -> Curve:
    curve = Curve([], [])
    for step in steps:
        total = 0.0
        with engine.accumulate():
            for batch in batches(step):
                loss = engine(batch).mean() / 2
                loss.backward()
                total += loss.item()
        curve.losses.append(total)
        curve.norms.append(engine.step(RATES[step]))
    return curve


def train_with_torch(network: ArmdModel, config: OptimConfig, steps: range) -> Curve:
    """Do the same steps with torch only."""
    adam = torch.optim.AdamW(
        parameter_groups(network, config), lr=0.0, betas=config.betas, eps=config.eps
    )
    curve = Curve([], [])
    for step in steps:
        losses = [network(batch).mean() / 2 for batch in batches(step)]
        adam.zero_grad()
        torch.stack(losses).sum().backward()
        limit = config.clip_grad or math.inf
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), limit)
        for group in adam.param_groups:
            group["lr"] = RATES[step]
        adam.step()
        curve.losses.append(sum(loss.item() for loss in losses))
        curve.norms.append(float(norm))
    return curve


def build_engine(
    network: ArmdModel, groups: ProcessGroupCollection, config: OptimConfig, precision: str = "fp32"
) -> ZeroEngine:
    return ZeroEngine(ModelChunks([network]), config, precision=precision, groups=groups)


def copy_state(state: OptimizerState) -> OptimizerState:
    return copy.deepcopy(state)


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize("clip_grad", [0.5, 0.0])
@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_updates_like_torch(
    groups: ProcessGroupCollection, stage: int, clip_grad: float
) -> None:
    config = optim(stage, clip_grad=clip_grad)
    plain = build(LLAMA, groups)
    expected = train_with_torch(plain, config, range(3))
    assert min(expected.norms) > 0.6
    engine = build_engine(build(LLAMA, groups), groups, config)
    curve = train(engine, range(3))
    assert curve.losses == pytest.approx(expected.losses, abs=1e-6)
    assert curve.norms == pytest.approx(expected.norms, rel=1e-6)
    state = engine.export_state()
    assert state.num_updates == 3
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(state.master[name], parameter.data, atol=1e-6, rtol=1e-6)
    assert_equal(state.weights(engine.network), state.master)


CASES = [
    *((stage, "fp32") for stage in STAGES),
    *(pytest.param(stage, "bf16", marks=pytest.mark.slow(minutes=0.2)) for stage in STAGES[1:]),
]


@pytest.mark.parametrize(("stage", "precision"), CASES)
def test_a_state_continues_in_another_engine(
    groups: ProcessGroupCollection, stage: int, precision: str
) -> None:
    config = optim(stage)
    engine = build_engine(build(LLAMA, groups), groups, config, precision)
    train(engine, range(2))
    state = copy_state(engine.export_state())
    weights = copy_state(state).weights(engine.network)
    expected = train(engine, range(2, 5))

    network = build(LLAMA, groups, seed=9)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(weights[name])
    other = build_engine(network, groups, config, precision)
    other.import_state(state)
    assert other.export_state().num_updates == 2
    assert train(other, range(2, 5)) == expected
    one, two = engine.export_state(), other.export_state()
    assert one.num_updates == two.num_updates == 5
    assert_equal(one.master, two.master)
    for key in MOMENTS:
        assert_equal(one.moments[key], two.moments[key])
        assert all(tensor.any() for tensor in one.moments[key].values())


def test_a_state_of_stage_1_continues_in_every_stage(groups: ProcessGroupCollection) -> None:
    losses = []
    for stage in STAGES:
        engine = build_engine(build(LLAMA, groups), groups, optim(1))
        train(engine, range(2))
        state = copy_state(engine.export_state())
        network = build(LLAMA, groups)
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                parameter.copy_(state.master[name])
        other = build_engine(network, groups, optim(stage))
        other.import_state(state)
        losses.append(train(other, range(2, 5)).losses)
    for other_losses in losses[1:]:
        assert other_losses == pytest.approx(losses[0], abs=1e-6)


def test_bf16_has_fp32_master_weights(groups: ProcessGroupCollection) -> None:
    engine = build_engine(build(LLAMA, groups), groups, optim(1), "bf16")
    train(engine, range(1))
    state = engine.export_state()
    assert {tensor.dtype for tensor in state.master.values()} == {torch.float32}
    rounded = {name: tensor.bfloat16() for name, tensor in state.master.items()}
    assert_equal(rounded, {name: p.data for name, p in engine.network.parameters_by_name().items()})
    assert any(not torch.equal(rounded[name].float(), state.master[name]) for name in rounded)


@pytest.mark.parametrize("stage", STAGES)
def test_a_non_finite_gradient_changes_nothing(groups: ProcessGroupCollection, stage: int) -> None:
    engine = build_engine(build(LLAMA, groups), groups, optim(stage))
    train(engine, range(1))
    before = copy_state(engine.export_state())
    with engine.accumulate():
        (engine(batches(1)[0]).mean() * torch.inf).backward()
    assert not math.isfinite(engine.step(1e-3))
    after = engine.export_state()
    assert_equal(before.master, after.master)
    for key in MOMENTS:
        assert_equal(before.moments[key], after.moments[key])
