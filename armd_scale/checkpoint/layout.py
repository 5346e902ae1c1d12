"""Tensors by parameter name, as shards of full tensors that any layout can read back.

A section is a set of tensors with one entry per parameter: the weights, the optimizer's master
copy, each of its moments. megatron-core's `dist_checkpointing` writes each rank's part and reads
whatever part another layout asks for.
"""

import queue
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor, nn

from armd_scale.errors import CheckpointError
from armd_scale.model.armd import ArmdModel
from armd_scale.model.chunks import Chunks
from armd_scale.parallel.cpu import cpu_stands_in_for_cuda
from armd_scale.parallel.shard import split_of

Sections = Mapping[str, Mapping[str, Tensor]]
Network = ArmdModel | Chunks


def write_sections(
    sections: Sections, folder: Path, *, network: Network, groups: ProcessGroupCollection
) -> None:
    """Writes this process's part of every section into `folder` (collective; it must be empty)."""
    shards: dict[str, ShardedTensor] = {}
    for section, tensors in sections.items():
        shards |= _shards(section, tensors, network=network, groups=groups)
    # megatron-core hands the writers' results over through a manager process, for writing in the
    # background. That process starts by importing everything again (seconds), outlives a trainer
    # that is killed, and dies of the very SIGTERM that asks the trainer to save. We wait for the
    # writers, so a queue within this process does.
    filesystem_async._results_queue = queue.SimpleQueue()  # pyright: ignore[reportAttributeAccessIssue]
    with cpu_stands_in_for_cuda():
        dist_checkpointing.save(shards, str(folder))


def read_sections(
    names: Iterable[str],
    folder: Path,
    *,
    network: Network,
    groups: ProcessGroupCollection,
    may_lack: Callable[[str], bool] = lambda name: False,
) -> dict[str, dict[str, Tensor]]:
    """Reads this process's part of the named sections, in the types they were written in.

    Args:
        names: of the sections.
        folder: that `write_sections` wrote.
        network: whose parameters are wanted, and how they are split.
        groups: the process groups of the layout.
        may_lack: which parameters are left out where the folder has none of that name and shape.

    Raises:
        CheckpointError: a tensor is missing or has another shape: another model's checkpoint.
    """
    stored = {
        key: tensor
        for key, tensor in dist_checkpointing.load_tensors_metadata(str(folder)).items()
        if isinstance(tensor, ShardedTensor)
    }
    sections = {}
    wanted: dict[str, ShardedTensor] = {}
    for section in names:
        empty = {
            name: torch.empty(parameter.shape, dtype=_stored_dtype(stored, f"{section}.{name}"))
            for name, parameter in network.by_name().items()
            if not may_lack(name) or _holds(stored, f"{section}.{name}", parameter, groups)
        }
        shards = _shards(section, empty, network=network, groups=groups)
        for key, shard in shards.items():
            _check(key, shard, stored, folder)
        wanted |= shards
        sections[section] = empty
    with cpu_stands_in_for_cuda():
        loaded: Any = dist_checkpointing.load(wanted, str(folder))
    for key, shard in wanted.items():
        assert shard.data is not None
        shard.data.copy_(loaded[key])
    return sections


def _shards(
    section: str,
    tensors: Mapping[str, Tensor],
    *,
    network: Network,
    groups: ProcessGroupCollection,
) -> dict[str, ShardedTensor]:
    """Each tensor as megatron-core describes a part of a whole.

    A tensor of stride 2 (gate and up halves of a gated MLP) is two wholes, each split by itself.
    """
    shards = {}
    for name, parameter in network.by_name().items():
        if name not in tensors:
            continue
        split = split_of(parameter, groups.tp)
        offsets = [] if split.dim is None else [(split.dim, split.rank, split.size)]
        # Of equal copies, over stages, tensor and data parallelism, the one numbered 0 is written.
        copy = (
            int(getattr(parameter, "is_tied_copy", False)),
            split.rank if split.dim is None else 0,
            groups.dp.rank(),
        )
        for number, part in enumerate(tensors[name].detach().chunk(split.stride, split.dim or 0)):
            key = f"{section}.{name}" + (f".{number}" if split.stride > 1 else "")
            shards[key] = ShardedTensor.from_rank_offsets(key, part, *offsets, replica_id=copy)
    return shards


def _holds(
    stored: Mapping[str, ShardedTensor],
    key: str,
    parameter: nn.Parameter,
    groups: ProcessGroupCollection,
) -> bool:
    """Whether a tensor of that name and whole shape is there; of parameters of stride 1."""
    whole = split_of(parameter, groups.tp).full_shape(parameter.shape)
    return key in stored and tuple(stored[key].global_shape) == whole


def _stored_dtype(stored: Mapping[str, ShardedTensor], key: str) -> torch.dtype:
    found = stored.get(key) or stored.get(f"{key}.0")
    return torch.float32 if found is None else found.dtype


def _check(
    key: str, shard: ShardedTensor, stored: Mapping[str, ShardedTensor], folder: Path
) -> None:
    if key not in stored:
        raise CheckpointError(
            f"the checkpoint must hold the network's tensor {key}, and {folder} does not: "
            "it is of another model; give the recipe that it was trained with"
        )
    if tuple(stored[key].global_shape) != tuple(shard.global_shape):
        raise CheckpointError(
            f"the network's tensor {key} must have the shape {tuple(shard.global_shape)}, got "
            f"{tuple(stored[key].global_shape)} in {folder}: it is of another model; give the "
            "recipe that it was trained with"
        )
