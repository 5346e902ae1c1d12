"""Turn a checkpoint of format 2 into one of the present format, without executing anything in it.

Format 2 kept tensors in torch.distributed.checkpoint folders, whose index is a pickle. It is read
here by an unpickler that knows the few classes such an index has, and makes inert records of them;
anything else in it is refused. Values are read with `torch.load(weights_only=True)`.
"""

import io
import pickle
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from armd_scale.checkpoint.save import OPTIMIZER, WEIGHTS
from armd_scale.checkpoint.store import MANIFEST, read_manifest, verify, write_manifest
from armd_scale.checkpoint.tensor_files import (
    rank_file,
    whole_record,
    write_index,
    write_tensors,
)
from armd_scale.errors import CheckpointError
from armd_scale.files import atomic_directory

OLD_FORMAT = 2
_OLD_INDEX = ".metadata"
_OLD_FILE = re.compile(r"__\d+_\d+\.distcp")
_CLASSES = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.planner": {
        "SavePlan",
        "TensorWriteData",
        "WriteItem",
        "WriteItemType",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    # Of the folder that was written to, which does not matter.
    "pathlib": {"PosixPath", "WindowsPath"},
    "pathlib._local": {"PosixPath", "WindowsPath"},
}


def upgrade_checkpoint(folder: Path) -> None:
    """Replace a checkpoint of format 2 by one of the present format with the same values.

    Memory holds one tensor at a time. The old folder stays until the new one is complete.

    Args:
        folder: the checkpoint, `.../step_N`, or one that a conversion wrote.

    Raises:
        CheckpointError: the folder is not a checkpoint of format 2, is damaged or holds what such a
            checkpoint never holds, or the new one cannot be written.
    """
    # All hashes first: the values are then those that were saved, whoever made them.
    verify(folder, expected_format=OLD_FORMAT)
    step = read_manifest(folder, expected_format=OLD_FORMAT).step
    with atomic_directory(folder, error_class=CheckpointError) as partial:
        hashed = {}
        for path in sorted(folder.iterdir()):
            if path.name in (WEIGHTS, OPTIMIZER):
                (partial / path.name).mkdir()
                if (path / _OLD_INDEX).is_file():  # a converted checkpoint has no optimizer
                    record = _upgrade_tensors(path, partial / path.name)
                    hashed[f"{path.name}/{rank_file(0)}"] = record
            elif path.is_dir():
                shutil.copytree(path, partial / path.name)
            elif path.name != MANIFEST:
                shutil.copyfile(path, partial / path.name)
        write_manifest(partial, step=step, hashed=hashed)


@dataclass(frozen=True)
class _OldTensor:
    """A tensor in an old folder."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    pieces: list["_OldPiece"] = field(default_factory=list)

    @property
    def empty(self) -> Tensor:
        """Shape and type on the meta device."""
        return torch.empty(self.shape, dtype=self.dtype, device="meta")


@dataclass(frozen=True)
class _OldPiece:
    """A block of a tensor: where it begins in the tensor, and its bytes in a file."""

    start: tuple[int, ...]
    file: str
    offset: int
    length: int


def _upgrade_tensors(old: Path, new: Path) -> dict[str, Any]:
    """Write all tensors of an old folder into one file and an index; return the file's record."""
    tensors = _read_old_index(old / _OLD_INDEX)
    empty = {name: tensor.empty for name, tensor in tensors.items()}
    record = write_tensors(
        new / rank_file(0),
        empty,
        get_tensor=lambda name: _read_old_tensor(old, name, tensors[name]),
    )
    write_index(new, {name: whole_record(tensor, rank_file(0)) for name, tensor in empty.items()})
    return record


def _read_old_tensor(folder: Path, name: str, tensor: _OldTensor) -> Tensor:
    values = torch.empty(tensor.shape, dtype=tensor.dtype)
    num_filled = 0
    for piece in tensor.pieces:
        path = folder / piece.file
        try:
            with path.open("rb") as file:
                file.seek(piece.offset)
                block = torch.load(io.BytesIO(file.read(piece.length)), weights_only=True)
            # A view of the block's place, narrowed one dimension after another.
            target = values
            for dim, (start, size) in enumerate(zip(piece.start, block.shape, strict=True)):
                target = target.narrow(dim, start, size)
            target.copy_(block)
        # torch and its zip reader raise many kinds of errors for bytes that are no tensor.
        except Exception as error:
            raise _refusal(path, f"{name} cannot be read") from error
        num_filled += block.numel()
    # Blocks of a checkpoint do not overlap, so equal counts mean that nothing is left empty.
    if num_filled != values.numel():
        raise _refusal(folder, f"{name} is incomplete")
    return values


def _read_old_index(path: Path) -> dict[str, _OldTensor]:
    """Return the tensors that an old index lists, by name."""
    try:
        with path.open("rb") as file:
            index = _IndexUnpickler(file).load()
        return dict(_old_tensors(index))
    except CheckpointError:
        raise
    # A crafted pickle can raise anything while it is taken apart.
    except Exception as error:
        raise _refusal(path, "it is not the index of a checkpoint") from error


def _old_tensors(index: "_Record") -> Iterator[tuple[str, _OldTensor]]:
    tensors: dict[str, _OldTensor] = {}
    for name, stored in index.state["state_dict_metadata"].items():
        # The first of the properties is the type; the others do not apply to plain tensors.
        dtype = stored.state["properties"].state[0]
        tensors[name] = _OldTensor(tuple(stored.state["size"]), dtype)
    for key, info in index.state["storage_data"].items():
        name, start = key.state["fqn"], key.state["offset"]
        file = info.state["relative_path"]
        if _OLD_FILE.fullmatch(file) is None:
            raise CheckpointError(f"a checkpoint must not refer to files outside of it ({file!r})")
        piece = _OldPiece(tuple(start or ()), file, info.state["offset"], info.state["length"])
        tensors[name].pieces.append(piece)
    return iter(tensors.items())


class _Record:
    """What an object of an old index becomes: its state, and no behavior."""

    def __init__(self, *_: Any) -> None:
        self.state: Any = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, Mapping | tuple) else {}


class _IndexUnpickler(pickle.Unpickler):
    """Builds plain records; refuses every class and function that an index does not need."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a global name in the pickle."""
        if name in _CLASSES.get(module, ()):
            return _Record
        if module == "torch" and name == "Size":
            return tuple
        if module == "torch.serialization" and name == "_get_layout":
            return str
        # The types of tensors are pickled as names in torch; everything else there is refused.
        value = getattr(torch, name, None) if module == "torch" else None
        if isinstance(value, torch.dtype):
            return value
        raise CheckpointError(
            f"a checkpoint must not contain code, and the index of this one asks for {module}."
            f"{name}: do not use it"
        )


def _refusal(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"a checkpoint must be as it was written, and {path} is not: {reason}")
