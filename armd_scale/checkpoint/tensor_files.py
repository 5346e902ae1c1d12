"""Tensors in safetensors files, and the JSON index that says where each one is.

A folder of tensors has a file for each rank that wrote something, and one index:

    rank_00000.safetensors      tensors, or parts of tensors, by name
    index.json                  {"tensors": {NAME: {"dtype", "shape", "dim", "parts"}}}

A tensor is stored whole, or as consecutive parts along dimension `dim`, one per tensor-parallel
rank: `parts` has the file of each and the range `start` to `stop` that it covers. In its file a
part has the name of the tensor, so the `safetensors` package alone reads all values. Neither kind
of file can hold code, and the index is checked before any of it is used.
"""

import hashlib
import json
import os
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from armd_scale.config.codec import read_dataclass
from armd_scale.errors import CheckpointError

INDEX_FILE = "index.json"
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""By the names that safetensors gives them."""
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_FILE_NAME = re.compile(r"rank_\d{5,}\.safetensors")
_MAX_DIMENSION = 1 << 48

FileRecord = dict[str, Any]
"""`{"bytes", "sha256"}` of a file, as the manifest of a checkpoint lists it."""


@final
@dataclass(frozen=True, order=True)
class TensorPart:
    """A range of a tensor along its `dim`, and the file that holds it."""

    start: int
    stop: int
    file: str


@final
@dataclass(frozen=True)
class TensorRecord:
    """A stored tensor."""

    dtype: str
    """A key of DTYPES."""
    shape: tuple[int, ...]
    """Of the whole tensor."""
    dim: int
    """Dimension along which the parts are consecutive; 0 for a tensor in one part."""
    parts: tuple[TensorPart, ...]
    """In order, without gaps; a tensor without dimensions counts as one of size 1."""


def rank_file(rank: int) -> str:
    """Name of the file that a rank writes."""
    return f"rank_{rank:05d}.safetensors"


def dtype_name(dtype: torch.dtype) -> str:
    """Return safetensors' name of a type."""
    return _DTYPE_NAMES[dtype]


def whole_record(tensor: Tensor, file: str) -> TensorRecord:
    """Return the entry of a tensor that is stored in one part; its values are not read."""
    part = TensorPart(0, tensor.shape[0] if tensor.dim() else 1, file)
    return TensorRecord(dtype_name(tensor.dtype), tuple(tensor.shape), 0, (part,))


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], *, get_tensor: Callable[[str], Tensor]
) -> FileRecord:
    """Write a safetensors file tensor by tensor, hash it meanwhile, and flush it to disk.

    The package's own writer takes all values at once and hashes nothing; the format is a length, a
    JSON header and the bytes of the tensors one after another.

    Args:
        path: the file.
        tensors: shape and type of each tensor by name; their values are not read.
        get_tensor: returns the values of a tensor, on any device; called once for each tensor, just
            before it is written.

    Returns:
        Size and SHA-256 of the file.

    Raises:
        OSError: the file cannot be written.
    """
    # Wide types first: every tensor then begins at a multiple of its element's size.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in names:
        tensor, stop = tensors[name], offset + tensors[name].nbytes
        header[name] = {
            "dtype": dtype_name(tensor.dtype),
            "shape": list(tensor.shape),
            "data_offsets": [offset, stop],
        }
        offset = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    # The values then begin at a multiple of 8 bytes, as the format asks.
    text += b" " * (-len(text) % 8)
    sha256 = hashlib.sha256()
    with path.open("wb") as file:

        def write(data: bytes | memoryview) -> None:
            sha256.update(data)
            file.write(data)

        write(struct.pack("<Q", len(text)) + text)
        for name in names:
            tensor = get_tensor(name).detach().cpu().contiguous()
            assert tensor.shape == tensors[name].shape, name
            assert tensor.dtype == tensors[name].dtype, name
            # As bytes, because NumPy has no bfloat16.
            values: Any = tensor.reshape(-1).view(torch.uint8).numpy()
            write(memoryview(values))
        # On disk before the manifest vouches for it: a rename can outlive a power cut that the data
        # does not.
        file.flush()
        os.fsync(file.fileno())
        return {"bytes": file.tell(), "sha256": sha256.hexdigest()}


def merge_records(records: Iterable[Mapping[str, TensorRecord]]) -> dict[str, TensorRecord]:
    """Return the index of a folder from what each rank wrote: the parts of a tensor in order."""
    merged: dict[str, TensorRecord] = {}
    for of_rank in records:
        for name, record in of_rank.items():
            parts = merged[name].parts if name in merged else ()
            merged[name] = TensorRecord(
                record.dtype, record.shape, record.dim, tuple(sorted((*parts, *record.parts)))
            )
    return merged


def write_index(folder: Path, records: Mapping[str, TensorRecord]) -> None:
    """Write the index of a folder.

    Raises:
        OSError: the file cannot be written.
    """
    tensors = {name: asdict(record) for name, record in records.items()}
    (folder / INDEX_FILE).write_text(json.dumps({"tensors": tensors}, indent=1) + "\n")


@dataclass(frozen=True)
class _Index:
    tensors: Mapping[str, TensorRecord]

    def __post_init__(self) -> None:
        for name, record in self.tensors.items():
            _check_record(name, record)


def read_index(folder: Path) -> dict[str, TensorRecord]:
    """Read and check the index of a folder.

    Raises:
        CheckpointError: there is none, or it is not one that `write_index` writes.
    """
    index = read_dataclass(
        folder / INDEX_FILE, _Index, error_class=CheckpointError, advice="use another checkpoint"
    )
    return dict(index.tensors)


def _check_record(name: str, record: TensorRecord) -> None:
    """Check the ranges of one entry of an index, whose types are right.

    Raises:
        ValueError: what is wrong.
    """
    shape, dim, parts = record.shape, record.dim, record.parts
    _require(record.dtype in DTYPES, f"{name} has an unknown dtype")
    _require(all(map(_is_size, shape)), f"{name} has no valid shape")
    _require(_is_size(dim) and dim < max(len(shape), 1), f"{name} has no valid dim")
    _require(len(parts) > 0, f"{name} has no parts")
    end = 0
    for part in parts:
        _require(_is_size(part.start) and _is_size(part.stop), f"{name} has an invalid part")
        _require(part.start == end, f"the parts of {name} must follow each other")
        # Nothing but a name of ours: a path could lead out of the folder.
        is_ours = _FILE_NAME.fullmatch(part.file) is not None
        _require(is_ours, f"a part of {name} must be in a file named {rank_file(0)}")
        end = part.stop
    _require(end == (shape[dim] if shape else 1), f"the parts of {name} must add up to its shape")


def _is_size(value: int) -> bool:
    return 0 <= value < _MAX_DIMENSION


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


class TensorReader:
    """Reads tensors of a folder, whole or in part; a context manager.

    Args:
        folder: the folder.

    Raises:
        CheckpointError: the index is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.records = read_index(folder)
        """By name."""
        self._stack = ExitStack()
        # Files stay open for all their tensors; a rank reads few files.
        self._open = cache(self._open_file)

    def __enter__(self) -> "TensorReader":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def read(self, name: str, *, dim: int = 0, start: int = 0, stop: int | None = None) -> Tensor:
        """Return the range `start` to `stop` of a tensor along `dim`, on the CPU; all by default.

        Raises:
            CheckpointError: a file is missing or does not hold what the index says.
        """
        record = self.records[name]
        if not record.shape:
            return self._read_part(record.parts[0].file, name, (), record)
        wanted = [range(size) for size in record.shape]
        wanted[dim] = wanted[dim][start:stop]
        result = torch.empty([len(indices) for indices in wanted], dtype=DTYPES[record.dtype])
        # Parts are consecutive along one dimension, and the range may be along another one: a
        # matrix that was written whole can be read by columns.
        along = wanted[record.dim]
        for part in record.parts:
            first, last = max(part.start, along.start), min(part.stop, along.stop)
            if first >= last:
                continue
            source = [slice(indices.start, indices.stop) for indices in wanted]
            source[record.dim] = slice(first - part.start, last - part.start)
            target = result.narrow(record.dim, first - along.start, last - first)
            values = self._read_part(part.file, name, tuple(source), record)
            if values.shape != target.shape:
                _raise_damaged(self._folder / part.file, f"holds {name} in another shape")
            target.copy_(values)
        return result

    def _read_part(
        self, file: str, name: str, slices: tuple[slice, ...], record: TensorRecord
    ) -> Tensor:
        path = self._folder / file
        try:
            stored = self._open(file).get_slice(name)
            # An int in the place of an empty tuple of slices would be refused.
            values = stored[slices] if slices else self._open(file).get_tensor(name)
        except (OSError, SafetensorError) as error:
            _raise_damaged(path, error, error)
        # The header of the file describes the tensor a second time, and must agree.
        if values.dtype != DTYPES[record.dtype]:
            _raise_damaged(path, f"holds {name} in another type")
        return values

    def _open_file(self, file: str) -> Any:
        return self._stack.enter_context(safe_open(self._folder / file, framework="pt"))


def _raise_damaged(path: Path, reason: object, cause: Exception | None = None) -> NoReturn:
    raise CheckpointError(
        f"a checkpoint must be as it was written, and {path} is not ({reason}): use another "
        "checkpoint"
    ) from cause
