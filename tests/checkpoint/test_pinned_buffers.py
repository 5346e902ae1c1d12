"""Copies in host memory: they stay while training changes what they were made of."""

import torch
from megatron.core.process_groups_config import ProcessGroupCollection

from armd_scale.checkpoint.pinned_buffers import HostBuffers
from tests.support.networks import LLAMA, build
from tests.support.spawn import run_on_ranks


def test_a_copy_stays_and_its_memory_serves_the_next(groups: ProcessGroupCollection) -> None:
    network = build(LLAMA, groups)
    copies = HostBuffers(network, groups, reuse=True)
    name, parameter = next(network.named_parameters())
    first = copies.copy_to_host("weights", name, parameter)
    kept = parameter.detach().clone()
    with torch.no_grad():
        parameter.zero_()
    assert torch.equal(first, kept)
    other = copies.copy_to_host("average", name, parameter)
    again = copies.copy_to_host("weights", name, parameter)
    assert again.data_ptr() == first.data_ptr() != other.data_ptr()
    assert not again.any()


def test_a_save_that_is_waited_for_copies_nothing(groups: ProcessGroupCollection) -> None:
    network = build(LLAMA, groups)
    copies = HostBuffers(network, groups, reuse=False)
    for name, parameter in network.named_parameters():
        assert copies.copy_to_host("weights", name, parameter).data_ptr() == parameter.data_ptr()


def taken(groups: ProcessGroupCollection) -> set[bool]:
    network = build(LLAMA, groups)
    copies = HostBuffers(network, groups, reuse=True)
    return {copies.copy_to_host("weights", n, p).is_meta for n, p in network.named_parameters()}


def test_what_another_process_writes_is_not_copied() -> None:
    assert run_on_ranks(taken, 2) == [{False}, {True}]  # data parallel: equal copies
