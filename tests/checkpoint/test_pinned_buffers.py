"""Tests of host buffers: they keep their values while training changes the originals."""

import pytest
import torch
from megatron.core.process_groups_config import ProcessGroupCollection

from armd_scale.checkpoint.pinned_buffers import HostBuffers
from tests.support.networks import LLAMA, build
from tests.support.spawn import run_on_ranks


def test_a_copy_keeps_its_values_and_its_memory_is_reused(groups: ProcessGroupCollection) -> None:
    network = build(LLAMA, groups)
    buffers = HostBuffers(network, groups, reuse=True)
    name, parameter = next(network.named_parameters())
    first = buffers.copy_to_host("weights", name, parameter)
    original = parameter.detach().clone()
    with torch.no_grad():
        parameter.zero_()
    assert torch.equal(first, original)
    other = buffers.copy_to_host("average", name, parameter)
    again = buffers.copy_to_host("weights", name, parameter)
    assert again.data_ptr() == first.data_ptr() != other.data_ptr()
    assert not again.any()


def test_a_synchronous_save_copies_nothing(groups: ProcessGroupCollection) -> None:
    network = build(LLAMA, groups)
    buffers = HostBuffers(network, groups, reuse=False)
    for name, parameter in network.named_parameters():
        assert buffers.copy_to_host("weights", name, parameter).data_ptr() == parameter.data_ptr()


def is_meta_by_rank(groups: ProcessGroupCollection) -> set[bool]:
    network = build(LLAMA, groups)
    buffers = HostBuffers(network, groups, reuse=True)
    return {buffers.copy_to_host("weights", n, p).is_meta for n, p in network.named_parameters()}


@pytest.mark.slow
def test_tensors_that_another_rank_writes_are_not_copied() -> None:
    assert run_on_ranks(is_meta_by_rank, 2) == [
        {False},
        {True},
    ]  # data parallel: equal copies
