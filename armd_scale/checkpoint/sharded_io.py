"""Tensors by parameter name, stored as parts of full tensors that any layout can read.

A section is a set of tensors with one entry per parameter: the weights, the optimizer's master
copy, each of its moments. A tensor is stored under its name in the whole network and with its whole
shape. Which rank writes what follows from the parameters alone, so writing needs no communication
and may run in a thread; only the index, written by rank 0, needs the results of all ranks.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection
from torch import Tensor, nn

from armd_scale.checkpoint.tensor_files import (
    FileRecord,
    TensorPart,
    TensorReader,
    TensorRecord,
    dtype_name,
    merge_records,
    rank_file,
    write_index,
    write_tensors,
)
from armd_scale.errors import CheckpointError
from armd_scale.model.armd_model import ArmdModel
from armd_scale.model.model_chunks import ModelChunks
from armd_scale.parallel.tensor.partition import TensorPartition, tensor_partition

StateDicts = Mapping[str, Mapping[str, Tensor]]
"""Tensors by section and parameter name."""
Network = ArmdModel | ModelChunks


class WriteResults(NamedTuple):
    """What one rank has written."""

    records: dict[str, TensorRecord]
    """Its part of each tensor, for the index."""
    files: dict[str, FileRecord]
    """`{"bytes", "sha256"}` by file name."""


class LocalPart(NamedTuple):
    """The part of a stored tensor that belongs to this rank."""

    key: str
    """Name of the stored tensor: SECTION.NAME, or SECTION.NAME.i for half i of a gated MLP."""
    shape: tuple[int, ...]
    """Of the stored tensor."""
    dim: int
    start: int
    stop: int
    """The rank holds `start` to `stop` along `dim`."""


class ShardedWriter:
    """This rank's tensors of some sections: the parts that no other rank writes.

    Args:
        folder: for the files of all ranks; exists and is empty.
        sections: tensors, which must keep their values until they are written. Those for which
            `is_main_replica` is false may be on the meta device.
        network: network whose parameters define how the tensors are split.
        groups: the process groups of the layout.
    """

    def __init__(
        self,
        folder: Path,
        sections: StateDicts,
        *,
        network: Network,
        groups: ProcessGroupCollection,
    ) -> None:
        self._folder, self._file = folder, rank_file(dist.get_rank())
        self._tensors: dict[str, Tensor] = {}
        self._records: dict[str, TensorRecord] = {}
        for section, named in sections.items():
            for name, parameter in network.parameters_by_name().items():
                # One of all ranks with equal copies writes each tensor, so the files add up to one
                # copy of the state.
                if name in named and _replica_id(parameter, groups) == (0, 0, 0):
                    self._add(section, name, parameter, named[name].detach(), groups)

    def _add(
        self,
        section: str,
        name: str,
        parameter: nn.Parameter,
        tensor: Tensor,
        groups: ProcessGroupCollection,
    ) -> None:
        # Under ZeRO 3 the parameter itself is empty, and only `tensor` has its shape.
        split = tensor_partition(parameter, groups.tp)
        parts = list(_local_parts(section, name, tensor.shape, split))
        halves = tensor.chunk(len(parts), parts[0].dim) if tensor.dim() else (tensor,)
        for part, half in zip(parts, halves, strict=True):
            self._tensors[part.key] = half
            stored = TensorPart(part.start, part.stop, self._file)
            self._records[part.key] = TensorRecord(
                dtype_name(half.dtype), part.shape, part.dim, (stored,)
            )

    def write(self) -> WriteResults:
        """Write this rank's file and flush it to disk; not collective.

        Raises:
            OSError: the file cannot be written.
        """
        if not self._tensors:  # every tensor has a copy on another rank
            return WriteResults({}, {})
        path = self._folder / self._file
        record = write_tensors(path, self._tensors, get_tensor=self._tensors.__getitem__)
        return WriteResults(self._records, {self._file: record})

    def finish(self, records: Sequence[Mapping[str, TensorRecord]]) -> None:
        """Write the index of all files; call on rank 0, with the records of all ranks.

        Raises:
            OSError: a file cannot be written.
        """
        write_index(self._folder, merge_records(records))


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
    """Read this rank's part of some sections, in the types they were written in.

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
        CheckpointError: a tensor is missing or has another shape: the folder is of another model;
            or a file is damaged.
    """
    sections: dict[str, dict[str, Tensor]] = {}
    with TensorReader(folder) as reader:
        for section in names:
            tensors = sections[section] = {}
            for name, parameter in network.parameters_by_name().items():
                split = tensor_partition(parameter, groups.tp)
                parts = list(_local_parts(section, name, parameter.shape, split))
                # A part of another shape counts as missing: its values would mean something else.
                if allow_missing(name) and not all(_is_stored(part, reader) for part in parts):
                    continue
                halves = []
                for part in parts:
                    _check_stored(part, reader, folder)
                    halves.append(
                        reader.read(part.key, dim=part.dim, start=part.start, stop=part.stop)
                    )
                tensors[name] = halves[0] if len(halves) == 1 else torch.cat(halves, parts[0].dim)
    return sections


def _local_parts(
    section: str, name: str, local_shape: torch.Size, split: TensorPartition
) -> Iterator[LocalPart]:
    """Yield this rank's part of each stored tensor of a parameter.

    A tensor of stride 2 (the gate and up halves of a gated MLP, one below the other) is stored as
    two full tensors `NAME.0` and `NAME.1`, each split on its own. Stored as one, the halves of
    tensor-parallel ranks would interleave, and another number of ranks could not read them.
    """
    dim, rank = (0, 0) if split.dim is None else (split.dim, split.rank)
    shape = list(split.full_shape(local_shape))
    # A tensor without dimensions counts as one of size 1.
    size = local_shape[dim] // split.stride if shape else 1
    if shape:  # that of one half, if there are two
        shape[dim] //= split.stride
    for index in range(split.stride):
        key = f"{section}.{name}" + (f".{index}" if split.stride > 1 else "")
        yield LocalPart(key, tuple(shape), dim, rank * size, (rank + 1) * size)


def _replica_id(parameter: nn.Parameter, groups: ProcessGroupCollection) -> tuple[int, int, int]:
    """Index of this rank's copy among all equal copies of a parameter's part.

    The three components count copies over pipeline stages (a tied embedding), over tensor-parallel
    ranks (parameters that are not split) and over data-parallel ranks. Copy (0, 0, 0) is written.
    """
    split = tensor_partition(parameter, groups.tp)
    is_tied_copy = int(getattr(parameter, "is_tied_copy", False))
    return is_tied_copy, split.rank if split.dim is None else 0, groups.dp.rank()


def _is_stored(part: LocalPart, reader: TensorReader) -> bool:
    """Whether the tensor is there with the shape that the network needs."""
    record = reader.records.get(part.key)
    return record is not None and record.shape == part.shape


def _check_stored(part: LocalPart, reader: TensorReader, folder: Path) -> None:
    """Refuse a checkpoint that lacks a tensor of the network, or has it in another shape."""
    record = reader.records.get(part.key)
    if record is None:
        raise CheckpointError(
            f"the checkpoint must contain the network's tensor {part.key}, and {folder} does not: "
            "it is of another model; give the recipe that it was trained with"
        )
    if record.shape != part.shape:
        raise CheckpointError(
            f"the network's tensor {part.key} must have the shape {part.shape} (got "
            f"{record.shape} in {folder}): it is of another model; give the recipe that it was "
            "trained with"
        )
