"""Tensors by parameter name, as shards of full tensors that any layout can read back.

A section is a set of tensors with one entry per parameter: the weights, the optimizer's master
copy, each of its moments. megatron-core's `dist_checkpointing` plans which process writes what into
which file, and reads whatever part another layout asks for. It plans on shapes alone: the values
are first looked at by `SectionFiles.write`, which needs no other process and may run in a thread.
"""

import hashlib
import os
import queue
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing import ShardedTensor
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncRequest
from megatron.core.dist_checkpointing.strategies.common import TorchCommonSaveStrategy
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor, nn
from torch.distributed.checkpoint.filesystem import SerializationFormat, _write_item
from torch.distributed.checkpoint.storage import WriteResult

from armd_scale.errors import CheckpointError
from armd_scale.model.armd_model import ArmdModel
from armd_scale.model.model_chunks import ModelChunks
from armd_scale.parallel.cuda_shim import patch_cuda_for_cpu
from armd_scale.parallel.tensor.partition import tensor_partition

StateDicts = Mapping[str, Mapping[str, Tensor]]
Network = ArmdModel | ModelChunks
BACKEND = ("torch_dist", 1)


class WriteResults(NamedTuple):
    """What a process wrote."""

    results: list[WriteResult]
    """Where each tensor lies."""
    entries: dict[str, dict[str, Any]]
    """Size and SHA-256 of each file by its name."""


class ShardedWriter:
    """This process's files of some sections: planned, and written when it suits.

    Args:
        folder: for the files of all processes; it exists and is empty.
        parts: this process's tensors by key.
        strategy: has planned who writes what.
        common: what belongs to no tensor, in megatron-core's keeping.
    """

    def __init__(
        self,
        folder: Path,
        parts: Mapping[str, Tensor],
        strategy: "_PlanOnlySaveStrategy",
        common: dict,
    ) -> None:
        self._folder, self._parts, self._strategy = folder, parts, strategy
        self._common = common

    def write(self) -> WriteResults:
        """Brings this process's files to disk.

        Raises:
            OSError: a file cannot be written.
        """
        results: list[WriteResult] = []
        entries: dict[str, dict[str, Any]] = {}
        for path, name, (_, planned) in self._strategy.writer.write_buckets or []:
            with Path(path).open("wb") as file:
                hashed = _HashingFile(file)
                for item, _ in planned:
                    assert item.index.fqn is not None
                    part = _own_storage_on_cpu(self._parts[item.index.fqn].detach())
                    transforms = self._strategy.writer.transforms
                    kind = SerializationFormat.TORCH_SAVE
                    results.append(_write_item(transforms, hashed, part, item, name, kind))  # pyright: ignore[reportArgumentType]
                file.flush()
                os.fsync(file.fileno())
                entries[name] = {"bytes": file.tell(), "sha256": hashed.sha256.hexdigest()}
        return WriteResults(results, entries)

    def finish(self, results: Sequence[list[WriteResult]]) -> None:
        """Writes the index of all files; for the first process, with the results of all."""
        TorchCommonSaveStrategy(*BACKEND).save_common(self._common, self._folder)
        self._strategy.writer.finish(self._strategy.index, list(results))
        save_config(CheckpointingConfig(*BACKEND), str(self._folder))


def plan_sections(
    sections: StateDicts, folder: Path, *, network: Network, groups: ProcessGroupCollection
) -> ShardedWriter:
    """Agrees which process writes what into `folder` (collective).

    Args:
        sections: tensors that must keep their values until they are written. Those that
            `is_written_here` denies may be on the meta device.
        folder: an empty folder.
        network: whose parameters say how the tensors are split.
        groups: the process groups of the layout.
    """
    parts: dict[str, Tensor] = {}
    shards: dict[str, ShardedTensor] = {}
    for section, tensors in sections.items():
        for key, shard in _shards(section, tensors, network=network, groups=groups).items():
            assert shard.data is not None
            parts[key] = shard.data
            # Given values, the planner would copy every tensor that is a part of another.
            shard.data = shard.data.to("meta")
            shards[key] = shard
    # megatron-core's own writers would hand their results over through a manager process, started
    # with the plan: it imports everything again (seconds) and outlives a trainer that is killed.
    filesystem_async._results_queue = queue.SimpleQueue()  # pyright: ignore[reportAttributeAccessIssue]
    strategy = _PlanOnlySaveStrategy(*BACKEND)
    sharded, common = save_preprocess(shards)
    assert isinstance(sharded, dict)
    with patch_cuda_for_cpu():
        strategy.async_save(sharded, folder)
    return ShardedWriter(folder, parts, strategy, common)


class _PlanOnlySaveStrategy(TorchDistSaveShardedStrategy):
    """megatron-core's plan of a save, kept instead of made into its forked processes."""

    writer: FileSystemWriterAsync
    index: Any
    """Where each tensor lies; on the first process, None on others."""

    def _get_save_and_finalize_callbacks(
        self, writer: FileSystemWriterAsync, save_state_dict_ret: Sequence[Any]
    ) -> AsyncRequest:
        self.writer, self.index = writer, save_state_dict_ret[1]
        return AsyncRequest(None, (), [])


class _HashingFile:
    """A file that hashes what is written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.sha256 = file, hashlib.sha256()
        self.tell, self.flush = file.tell, file.flush

    def write(self, data: bytes | memoryview) -> int:
        self.sha256.update(data)
        return self._file.write(data)


def _own_storage_on_cpu(part: Tensor) -> Tensor:
    """The part on the CPU as a tensor of its own: all of a tensor's storage would be written."""
    part = part.cpu()
    return part if part.untyped_storage().nbytes() == part.nbytes else part.clone()


def is_main_replica(name: str, *, network: Network, groups: ProcessGroupCollection) -> bool:
    """Whether this process, of all that hold a copy of a parameter, is the one that writes it."""
    return _replica_id(network.parameters_by_name()[name], groups) == (0, 0, 0)


def read_sections(
    names: Iterable[str],
    folder: Path,
    *,
    network: Network,
    groups: ProcessGroupCollection,
    allow_missing: Callable[[str], bool] = lambda name: False,
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
            for name, parameter in network.parameters_by_name().items()
            if not allow_missing(name) or _holds(stored, f"{section}.{name}", parameter, groups)
        }
        shards = _shards(section, empty, network=network, groups=groups)
        for key, shard in shards.items():
            _check(key, shard, stored, folder)
        wanted |= shards
        sections[section] = empty
    with patch_cuda_for_cpu():
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
    for name, parameter in network.parameters_by_name().items():
        if name not in tensors:
            continue
        split, copy = tensor_partition(parameter, groups.tp), _replica_id(parameter, groups)
        offsets = [] if split.dim is None else [(split.dim, split.rank, split.size)]
        for number, part in enumerate(tensors[name].detach().chunk(split.stride, split.dim or 0)):
            key = f"{section}.{name}" + (f".{number}" if split.stride > 1 else "")
            shards[key] = ShardedTensor.from_rank_offsets(key, part, *offsets, replica_id=copy)
    return shards


def _replica_id(parameter: nn.Parameter, groups: ProcessGroupCollection) -> tuple[int, int, int]:
    """Which of the equal copies over stages, tensor and data parallelism; that of zeros is kept."""
    split = tensor_partition(parameter, groups.tp)
    is_tied_copy = int(getattr(parameter, "is_tied_copy", False))
    return is_tied_copy, split.rank if split.dim is None else 0, groups.dp.rank()


def _holds(
    stored: Mapping[str, ShardedTensor],
    key: str,
    parameter: nn.Parameter,
    groups: ProcessGroupCollection,
) -> bool:
    """Whether a tensor of that name and whole shape is there; of parameters of stride 1."""
    whole = tensor_partition(parameter, groups.tp).full_shape(parameter.shape)
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
