"""megatron-core's schedule on a single stage."""

import pytest
import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor, nn

from armd_scale.config.resolve import resolve_model
from armd_scale.config.schema import ParallelConfig
from armd_scale.model.spec import transformer_config
from armd_scale.parallel.pipeline.schedule import ScheduledChunk, run_micro_batches
from tests.support.networks import LLAMA

CONFIG = transformer_config(resolve_model(LLAMA), ParallelConfig())


def squares(output: Tensor, batch: Tensor) -> tuple[Tensor, float]:
    return output.square().sum(), batch.sum().item()


@pytest.fixture
def network() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_gradient_is_that_of_the_sum_of_the_losses(
    groups: ProcessGroupCollection, network: nn.Linear, count: int
) -> None:
    batches = list(torch.randn(count, 4, 3))
    reports = run_micro_batches(
        [ScheduledChunk(network, lambda rows: None, CONFIG)],
        batches,
        loss_fn=squares,
        groups=groups,
    )
    assert reports == [batch.sum().item() for batch in batches]
    grads = [p.grad for p in network.parameters()]
    loss = network(torch.cat(batches)).square().sum()
    for grad, expected in zip(
        grads, torch.autograd.grad(loss, tuple(network.parameters())), strict=True
    ):
        torch.testing.assert_close(grad, expected)


def test_forward_only_leaves_no_gradient(
    groups: ProcessGroupCollection, network: nn.Linear
) -> None:
    batches = [torch.ones(1, 3), torch.zeros(1, 3)]
    chunks = [ScheduledChunk(network, lambda rows: None, CONFIG)]
    reports = run_micro_batches(chunks, batches, loss_fn=squares, groups=groups, forward_only=True)
    assert reports == [3.0, 0.0]
    assert all(p.grad is None for p in network.parameters())
    assert torch.is_grad_enabled()
