"""Partition of tensors over tensor parallel ranks: disjoint, complete, gate and up separately."""

import dataclasses

import pytest
import torch

from armd_scale.config.schema import ParallelConfig
from armd_scale.parallel.tensor.partition import TensorPartition, tensor_partition
from tests.support.networks import LLAMA, build


def partitions(dim, stride, size):
    return [TensorPartition(dim=dim, stride=stride, rank=rank, size=size) for rank in range(size)]


def reassemble(parts, dim, stride):
    """Return the full tensor: for each section of the stride, every rank's piece in turn."""
    pieces = [part.chunk(stride, dim=dim) for part in parts]
    return torch.cat([rank[s] for s in range(stride) for rank in pieces], dim=dim)


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dim", [0, 1])
def test_the_local_parts_make_up_the_full_tensor(dim, stride, size):
    full = torch.arange(16 * 24).view(16, 24)
    parts = [split.local_part(full) for split in partitions(dim, stride, size)]
    assert torch.equal(reassemble(parts, dim, stride), full)
    for split, part in zip(partitions(dim, stride, size), parts, strict=True):
        assert split.full_shape(part.shape) == (16, 24)


def test_a_rank_holds_its_part_of_gate_and_up():
    gate, up = torch.arange(0, 4), torch.arange(10, 14)
    parts = [split.local_part(torch.cat((gate, up))) for split in partitions(0, 2, 2)]
    assert [part.tolist() for part in parts] == [[0, 1, 10, 11], [2, 3, 12, 13]]


def test_an_unsplit_tensor_is_whole_on_every_rank():
    full = torch.arange(6)
    for split in partitions(None, 1, 3):
        assert torch.equal(split.local_part(full), full)
        assert split.full_shape(full.shape) == (6,)


@pytest.mark.parametrize("activation", ["swiglu", "gelu"])
def test_every_parameter_is_marked_with_its_partition(groups, activation):
    model = dataclasses.replace(
        LLAMA,
        activation=activation,
        qk_norm="projection",
        attention_bias=True,
        attention_output_bias=True,
        mlp_bias=True,
    )
    network = build(model, groups, parallel=ParallelConfig())
    marks = {}
    for name, parameter in network.named_parameters():
        split = tensor_partition(parameter, groups.tp)
        marks[name.removeprefix("layers.0.")] = (split.dim, split.stride)
    halves = 2 if activation == "swiglu" else 1
    assert {name: mark for name, mark in marks.items() if not name.startswith("layers.")} == {
        "embedding.weight": (0, 1),
        "query_start.gap.weight": (None, 1),
        "attention_norm.weight": (None, 1),
        "attention.linear_q.weight": (0, 1),
        "attention.linear_q.bias": (0, 1),
        "attention.linear_kv.weight": (0, 1),
        "attention.linear_kv.bias": (0, 1),
        "attention.q_norm.weight": (0, 1),
        "attention.k_norm.weight": (0, 1),
        "attention.linear_proj.weight": (1, 1),
        "attention.linear_proj.bias": (None, 1),
        "mlp_norm.weight": (None, 1),
        "mlp.linear_fc1.weight": (0, halves),
        "mlp.linear_fc1.bias": (0, halves),
        "mlp.linear_fc2.weight": (1, 1),
        "mlp.linear_fc2.bias": (None, 1),
        "final_norm.weight": (None, 1),
    }
