"""Tests of sharded tensors: bit-exact round trips by name, also under another layout."""

import dataclasses
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor

from armd_scale.checkpoint.sharded_io import ShardedWriter, StateDicts, read_sections
from armd_scale.checkpoint.tensor_files import read_index
from armd_scale.config.schema import ModelConfig, ParallelConfig
from armd_scale.errors import CheckpointError
from armd_scale.model.armd_model import ArmdModel
from armd_scale.parallel.tensor.partition import tensor_partition
from tests.support.networks import LLAMA, QWEN3, SHAPES, build
from tests.support.spawn import run_on_ranks

pytestmark = pytest.mark.slow


def parameters(network: ArmdModel) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in network.named_parameters()}


def write_sections(
    sections: StateDicts, folder: Path, *, network: ArmdModel, groups: ProcessGroupCollection
) -> None:
    writer = ShardedWriter(folder, sections, network=network, groups=groups)
    results: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(results, writer.write().records)
    if dist.get_rank() == 0:
        writer.finish(results)
    dist.barrier()


def new_folder(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.parametrize("model", SHAPES.values(), ids=SHAPES)
def test_sections_round_trip_bit_exactly(
    groups: ProcessGroupCollection, tmp_path: Path, model: ModelConfig
) -> None:
    network = build(model, groups)
    sections = {
        "weights": parameters(network),
        "exp_avg": {name: torch.randn_like(p) for name, p in network.named_parameters()},
    }
    write_sections(sections, tmp_path, network=network, groups=groups)
    other = build(model, groups, seed=1)
    read = read_sections(["exp_avg", "weights"], tmp_path, network=other, groups=groups)
    for section, tensors in sections.items():
        assert read[section].keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert torch.equal(read[section][name], tensor), name


def test_writing_starts_no_process(groups: ProcessGroupCollection, tmp_path: Path) -> None:
    """A writer process would outlive a trainer that is killed."""
    network = build(LLAMA, groups)
    before = multiprocessing.active_children()
    write_sections({"weights": parameters(network)}, tmp_path, network=network, groups=groups)
    assert multiprocessing.active_children() == before


def test_gate_and_up_halves_are_stored_as_two_tensors(
    groups: ProcessGroupCollection, tmp_path: Path
) -> None:
    network = build(LLAMA, groups)
    name = "layers.0.mlp.linear_fc1.weight"
    whole = parameters(network)
    write_sections({"weights": whole}, tmp_path, network=network, groups=groups)
    stored = read_index(tmp_path)
    half = (LLAMA.ffn_hidden, LLAMA.hidden)
    assert [stored[f"weights.{name}.{i}"].shape for i in (0, 1)] == [half, half]
    assert f"weights.{name}" not in stored


def test_tensors_keep_their_types(groups: ProcessGroupCollection, tmp_path: Path) -> None:
    network = build(LLAMA, groups, dtype=torch.bfloat16)
    sections = {
        "weights": parameters(network),
        "master": {name: p.float() + 1e-4 for name, p in parameters(network).items()},
    }
    write_sections(sections, tmp_path, network=network, groups=groups)
    network = build(LLAMA, groups)
    read = read_sections(list(sections), tmp_path, network=network, groups=groups)
    for section, dtype in (("weights", torch.bfloat16), ("master", torch.float32)):
        assert {tensor.dtype for tensor in read[section].values()} == {dtype}
        assert all(torch.equal(read[section][n], t) for n, t in sections[section].items())


def refused(network: ArmdModel, folder: Path, groups: ProcessGroupCollection) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_sections(["weights"], folder, network=network, groups=groups)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_checkpoint_of_another_model_is_refused_with_the_name_of_a_tensor(
    groups: ProcessGroupCollection, tmp_path: Path
) -> None:
    network = build(LLAMA, groups)
    write_sections({"weights": parameters(network)}, tmp_path, network=network, groups=groups)
    deeper = build(dataclasses.replace(LLAMA, layers=5), groups)
    message = refused(deeper, tmp_path, groups)
    assert "must contain the network's tensor weights.layers.4." in message
    assert str(tmp_path) in message
    wider = build(dataclasses.replace(LLAMA, max_anchor_gap=9), groups)
    message = refused(wider, tmp_path, groups)
    assert "weights.query_start.gap.weight must have the shape (10, 32) (got (65, 32)" in message


def write_local_part(groups: ProcessGroupCollection, folder: Path) -> None:
    network = build_split(groups)
    write_sections({"weights": parameters(network)}, folder, network=network, groups=groups)


def read_local_part(groups: ProcessGroupCollection, folder: Path) -> bool:
    network = build_split(groups)
    read = read_sections(["weights"], folder, network=network, groups=groups)["weights"]
    return all(torch.equal(read[name], p) for name, p in network.named_parameters())


def build_split(groups: ProcessGroupCollection) -> ArmdModel:
    """Build this rank's part of a network whose full tensors do not depend on the layout."""
    network = build(QWEN3, groups, parallel=ParallelConfig(tensor=groups.tp.size()))
    with torch.no_grad():
        for seed, (_, p) in enumerate(sorted(network.named_parameters())):
            split = tensor_partition(p, groups.tp)
            noise = torch.Generator().manual_seed(seed)
            full = torch.randn(split.full_shape(p.shape), generator=noise)
            p.copy_(split.local_part(full))
    return network


def test_two_tensor_parallel_ranks_and_one_process_read_each_other(
    groups: ProcessGroupCollection, tmp_path: Path
) -> None:
    split = ParallelConfig(tensor=2)
    from_two, from_one = new_folder(tmp_path / "two"), new_folder(tmp_path / "one")
    run_on_ranks(write_local_part, 2, from_two, parallel=split)
    assert read_local_part(groups, from_two)
    write_local_part(groups, from_one)
    assert run_on_ranks(read_local_part, 2, from_one, parallel=split) == [True, True]
    assert run_on_ranks(read_local_part, 2, from_two) == [True, True]  # data parallel ranks
