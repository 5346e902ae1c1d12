"""Tensors by parameter name, stored as shards of full tensors that any layout can read.

A section is a set of tensors with one entry per parameter: the weights, the optimizer's master
copy, each of its moments. megatron-core's `dist_checkpointing` plans which rank writes what into
which file, and reads whatever part another layout needs. It plans on shapes alone: the values are
first read by `ShardedWriter.write`, which needs no other rank and may run in a thread.
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
"""Tensors by section and parameter name."""
Network = ArmdModel | ModelChunks
BACKEND = ("torch_dist", 1)


class WriteResults(NamedTuple):
    """What one rank has written."""

    results: list[WriteResult]
    """Location of each tensor, for the index."""
    files: dict[str, dict[str, Any]]
    """`{"bytes", "sha256"}` by file name."""


class ShardedWriter:
    """This rank's part of some sections: planned together with all ranks, written on its own.

    Args:
        folder: for the files of all ranks; exists and is empty.
        tensors: this rank's tensors by key.
        strategy: the plan: which rank writes which tensor into which file.
        common: state that belongs to no tensor, as megatron-core wants it stored.
    """

    def __init__(
        self,
        folder: Path,
        tensors: Mapping[str, Tensor],
        strategy: "_PlanOnlySaveStrategy",
        common: dict,
    ) -> None:
        self._folder, self._tensors, self._strategy = folder, tensors, strategy
        self._common = common

    def write(self) -> WriteResults:
        """Write this rank's files and flush them to disk; not collective.

        Raises:
            OSError: a file cannot be written.
        """
        results: list[WriteResult] = []
        files: dict[str, dict[str, Any]] = {}
        # A bucket is one file: its path, its name in the index, and the items planned for it. Byte
        # items (the part before `planned`) do not occur: all our values are tensors.
        for path, name, (_, planned) in self._strategy.writer.write_buckets or []:
            with Path(path).open("wb") as file:
                hashing_file = _HashingFile(file)
                for item, _ in planned:
                    assert item.index.fqn is not None
                    tensor = _own_storage_on_cpu(self._tensors[item.index.fqn].detach())
                    transforms = self._strategy.writer.transforms
                    kind = SerializationFormat.TORCH_SAVE
                    results.append(
                        _write_item(transforms, hashing_file, tensor, item, name, kind)  # pyright: ignore[reportArgumentType]
                    )
                file.flush()
                os.fsync(file.fileno())
                files[name] = {"bytes": file.tell(), "sha256": hashing_file.sha256.hexdigest()}
        return WriteResults(results, files)

    def finish(self, results: Sequence[list[WriteResult]]) -> None:
        """Write the index of all files; call on rank 0, with the results of all ranks.

        Raises:
            OSError: a file cannot be written.
        """
        TorchCommonSaveStrategy(*BACKEND).save_common(self._common, self._folder)
        self._strategy.writer.finish(self._strategy.index, list(results))
        save_config(CheckpointingConfig(*BACKEND), str(self._folder))


def plan_sections(
    sections: StateDicts, folder: Path, *, network: Network, groups: ProcessGroupCollection
) -> ShardedWriter:
    """Plan which rank writes what into `folder` (collective).

    Args:
        sections: tensors, which must keep their values until they are written. Those for which
            `is_main_replica` is false may be on the meta device.
        folder: an empty folder.
        network: network whose parameters define how the tensors are split.
        groups: the process groups of the layout.
    """
    tensors: dict[str, Tensor] = {}
    shards: dict[str, ShardedTensor] = {}
    for section, named in sections.items():
        for key, shard in _shards(section, named, network=network, groups=groups).items():
            assert shard.data is not None
            tensors[key] = shard.data
            # The planner copies every tensor that is a view of another one. With meta tensors it
            # copies nothing, and the values are read at the time of writing.
            shard.data = shard.data.to("meta")
            shards[key] = shard
    # megatron-core's own writers pass their results through a manager process, started at planning
    # time: it imports everything again (seconds), and outlives a trainer that is killed. We write
    # with threads, so an ordinary queue in its place is enough.
    filesystem_async._results_queue = queue.SimpleQueue()  # pyright: ignore[reportAttributeAccessIssue]
    strategy = _PlanOnlySaveStrategy(*BACKEND)
    sharded, common = save_preprocess(shards)
    assert isinstance(sharded, dict)
    with patch_cuda_for_cpu():
        strategy.async_save(sharded, folder)
    return ShardedWriter(folder, tensors, strategy, common)


class _PlanOnlySaveStrategy(TorchDistSaveShardedStrategy):
    """Keeps megatron-core's save plan instead of running it in forked processes.

    `async_save` ends by calling `_get_save_and_finalize_callbacks`, which upstream turns the plan
    into the function to fork. Overriding that private method is the only access to the plan.
    """

    writer: FileSystemWriterAsync
    index: Any
    """Global plan of where each tensor is stored; None except on rank 0."""

    def _get_save_and_finalize_callbacks(
        self, writer: FileSystemWriterAsync, save_state_dict_ret: Sequence[Any]
    ) -> AsyncRequest:
        self.writer, self.index = writer, save_state_dict_ret[1]
        return AsyncRequest(None, (), [])


class _HashingFile:
    """A file that hashes what is written to it, so that the manifest needs no second read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.sha256 = file, hashlib.sha256()
        self.tell, self.flush = file.tell, file.flush

    def write(self, data: bytes | memoryview) -> int:
        self.sha256.update(data)
        return self._file.write(data)


def _own_storage_on_cpu(tensor: Tensor) -> Tensor:
    """The tensor on the CPU, in a storage of its own size.

    `torch.save` writes the whole storage: a view of one half would store the other half too.
    """
    tensor = tensor.cpu()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def is_main_replica(name: str, *, network: Network, groups: ProcessGroupCollection) -> bool:
    """Whether this rank is the one that writes a parameter, of all ranks that hold a copy."""
    return _replica_id(network.parameters_by_name()[name], groups) == (0, 0, 0)


def read_sections(
    names: Iterable[str],
    folder: Path,
    *,
    network: Network,
    groups: ProcessGroupCollection,
    allow_missing: Callable[[str], bool] = lambda name: False,
) -> dict[str, dict[str, Tensor]]:
    """Read this rank's part of some sections, in the types they were written in (collective).

    Args:
        names: names of the sections.
        folder: folder with the files of a `ShardedWriter`.
        network: network whose parameters define which tensors to read and how they are split.
        groups: the process groups of the layout.
        allow_missing: by name, whether a parameter is left out of the result if the folder has no
            tensor of that name and shape.

    Returns:
        Tensors on the CPU by section and parameter name.

    Raises:
        CheckpointError: a tensor is missing or has another shape: the folder is of another model.
    """
    stored = {
        key: tensor
        for key, tensor in dist_checkpointing.load_tensors_metadata(str(folder)).items()
        if isinstance(tensor, ShardedTensor)
    }
    sections = {}
    requests: dict[str, ShardedTensor] = {}
    for section in names:
        empty = {
            name: torch.empty(parameter.shape, dtype=_stored_dtype(stored, f"{section}.{name}"))
            for name, parameter in network.parameters_by_name().items()
            if not allow_missing(name)
            or _has_tensor(stored, f"{section}.{name}", parameter, groups)
        }
        # The shards are views of the tensors in `empty`, so filling them fills the result.
        shards = _shards(section, empty, network=network, groups=groups)
        for key, shard in shards.items():
            _check_stored(key, shard, stored, folder)
        requests |= shards
        sections[section] = empty
    with patch_cuda_for_cpu():
        loaded: Any = dist_checkpointing.load(requests, str(folder))
    for key, shard in requests.items():
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
    """Describe each tensor as megatron-core's part of a full tensor.

    A tensor of stride 2 (the gate and up halves of a gated MLP, one below the other) is stored as
    two full tensors `NAME.0` and `NAME.1`, each split on its own. Stored as one, the halves of
    tensor-parallel ranks would interleave, and another number of ranks could not read them.
    """
    shards = {}
    for name, parameter in network.parameters_by_name().items():
        if name not in tensors:
            continue
        split, replica_id = tensor_partition(parameter, groups.tp), _replica_id(parameter, groups)
        offsets = [] if split.dim is None else [(split.dim, split.rank, split.size)]
        halves = tensors[name].detach().chunk(split.stride, split.dim or 0)
        for index, half in enumerate(halves):
            key = f"{section}.{name}" + (f".{index}" if split.stride > 1 else "")
            shards[key] = ShardedTensor.from_rank_offsets(
                key, half, *offsets, replica_id=replica_id
            )
    return shards


def _replica_id(parameter: nn.Parameter, groups: ProcessGroupCollection) -> tuple[int, int, int]:
    """Index of this rank's copy among all equal copies of a parameter's part.

    The three components count copies over pipeline stages (a tied embedding), over tensor-parallel
    ranks (parameters that are not split) and over data-parallel ranks. Copy (0, 0, 0) is written.
    """
    split = tensor_partition(parameter, groups.tp)
    is_tied_copy = int(getattr(parameter, "is_tied_copy", False))
    return is_tied_copy, split.rank if split.dim is None else 0, groups.dp.rank()


def _has_tensor(
    stored: Mapping[str, ShardedTensor],
    key: str,
    parameter: nn.Parameter,
    groups: ProcessGroupCollection,
) -> bool:
    """Whether a full tensor of that key and of the parameter's shape is stored (stride 1 only)."""
    full_shape = tensor_partition(parameter, groups.tp).full_shape(parameter.shape)
    return key in stored and tuple(stored[key].global_shape) == full_shape


def _stored_dtype(stored: Mapping[str, ShardedTensor], key: str) -> torch.dtype:
    tensor = stored.get(key) or stored.get(f"{key}.0")
    # The type of a missing tensor does not matter: `_check_stored` refuses it.
    return torch.float32 if tensor is None else tensor.dtype


def _check_stored(
    key: str, shard: ShardedTensor, stored: Mapping[str, ShardedTensor], folder: Path
) -> None:
    """Refuse a checkpoint that lacks a tensor of the network, or has it in another shape."""
    if key not in stored:
        raise CheckpointError(
            f"the checkpoint must contain the network's tensor {key}, and {folder} does not: "
            "it is of another model; give the recipe that it was trained with"
        )
    if tuple(stored[key].global_shape) != tuple(shard.global_shape):
        raise CheckpointError(
            f"the network's tensor {key} must have the shape {tuple(shard.global_shape)} (got "
            f"{tuple(stored[key].global_shape)} in {folder}): it is of another model; give the "
            "recipe that it was trained with"
        )
