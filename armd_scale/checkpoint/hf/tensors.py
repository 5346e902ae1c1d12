"""The tensors of a Hugging Face folder: found by name, read one at a time, written in shards."""

import json
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from armd_scale.errors import CheckpointError

SAFETENSORS, PICKLED = "model.safetensors", "pytorch_model.bin"
INDEX = ".index.json"
SHARD_BYTES = 5 * 10**9
_CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}


class HfTensors:
    """The tensors of a folder by name; all headers are read, and no data.

    Args:
        folder: with model.safetensors or pytorch_model.bin, whole or in shards with an index.

    Raises:
        CheckpointError: there are none, or a file is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file_of, self.tensors = dict[str, Path](), dict[str, Tensor]()
        """Shape and type of each, on the meta device."""
        for path in _files(folder):
            for name, tensor in _header(path).items():
                if name in self._file_of:
                    raise CheckpointError(
                        f"a folder must hold a tensor once, and {name} is both in "
                        f"{self._file_of[name]} and in {path}: remove the file that is left over"
                    )
                self._file_of[name], self.tensors[name] = path, tensor
        self._pickle: tuple[Path, Mapping[str, Tensor]] | None = None
        self._require_index()

    def file_of(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self._file_of[name]

    def read(self, name: str) -> Tensor:
        """One tensor.

        A file is opened for each one anew: what was read through an open mapping stays in memory
        as long as the mapping does.
        """
        path = self._file_of[name]
        if path.suffix == ".bin":
            if self._pickle is None or self._pickle[0] != path:
                self._pickle = (path, _load_pickled(path))
            return self._pickle[1][name]
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(name)

    def _require_index(self) -> None:
        """Every tensor that the index names is where it says."""
        for name, path in _read_index(self.folder).items():
            if self._file_of.get(name) != path:
                raise CheckpointError(
                    f"{path} must hold the tensor {name}, as the folder's index says, and does "
                    "not: copy the folder again"
                )


def _files(folder: Path) -> list[Path]:
    """The files that hold tensors, safetensors before pickles."""
    shards = sorted(set(_read_index(folder).values()))
    files = shards or [folder / name for name in (SAFETENSORS, PICKLED) if (folder / name).exists()]
    if not files:
        raise CheckpointError(
            f"a Hugging Face folder must hold {SAFETENSORS} or {PICKLED}, or an index of their "
            f"shards, and {folder} holds none: give the folder that save_pretrained wrote"
        )
    for path in files:
        if not path.is_file():
            raise CheckpointError(
                f"every shard that the folder's index names must be there, and {path} is missing: "
                "copy the folder again"
            )
    return files[:1] if not shards else files


def _read_index(folder: Path) -> dict[str, Path]:
    """The file of each tensor, where the folder has an index."""
    if (folder / SAFETENSORS).exists():
        return {}
    for name in (SAFETENSORS + INDEX, PICKLED + INDEX):
        path = folder / name
        if not path.exists():
            continue
        try:
            named = json.loads(path.read_text())["weight_map"]
            return {tensor: folder / file for tensor, file in named.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{path} must map tensors to files under weight_map, and cannot be read ({error}): "
                "copy the folder again"
            ) from None
    return {}


def _header(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, on the meta device."""
    if path.suffix == ".bin":
        return {name: tensor.to("meta") for name, tensor in _load_pickled(path).items()}
    try:
        with safe_open(path, framework="pt") as file:
            return {name: _meta_tensor(file.get_slice(name)) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError) as error:
        raise CheckpointError(
            f"{path} must be a whole safetensors file, and is not ({error}): copy it again"
        ) from None


def _meta_tensor(part: Any) -> Tensor:
    code = part.get_dtype()
    dtypes = [dtype for dtype, name in _CODES.items() if name == code]
    # A type that is no weight's (a mask, an integer) can only be a tensor that is left alone.
    return torch.empty(part.get_shape(), dtype=dtypes[0] if dtypes else torch.uint8, device="meta")


def _load_pickled(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a pickle, mapped; nothing but tensors is unpickled, and no code is run."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{path} must hold tensors and nothing that runs code, in the format of torch 1.6 or "
            f"later, and does not ({reason}): save it as safetensors where you trust it"
        ) from None


def write_tensors(
    folder: Path,
    tensors: Mapping[str, Tensor],
    *,
    read: Callable[[str], Tensor],
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes safetensors with no more than one tensor in memory; several shards get an index.

    Args:
        folder: for the files.
        tensors: all of them by name, on the meta device.
        read: gives one of them, called once for each in order.
        shard_bytes: largest file, if no single tensor is larger.
    """
    shards = _shards(tensors, shard_bytes)
    stem = SAFETENSORS.removesuffix(".safetensors")
    names = [
        f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else SAFETENSORS
        for number in range(1, len(shards) + 1)
    ]
    for name, shard in zip(names, shards, strict=True):
        _write_shard(folder / name, {tensor: tensors[tensor] for tensor in shard}, read)
    if len(shards) > 1:
        total = sum(tensor.nbytes for tensor in tensors.values())
        placed = {
            tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard
        }
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(placed.items()))}
        (folder / (SAFETENSORS + INDEX)).write_text(json.dumps(index, indent=2) + "\n")


def _shards(tensors: Mapping[str, Tensor], shard_bytes: int) -> Sequence[Sequence[str]]:
    shards: list[list[str]] = [[]]
    used = 0
    for name, tensor in tensors.items():
        if shards[-1] and used + tensor.nbytes > shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append(name)
        used += tensor.nbytes
    return shards


def _write_shard(path: Path, tensors: Mapping[str, Tensor], read: Callable[[str], Tensor]) -> None:
    """One safetensors file: the length of the header in 8 bytes, the header, the data."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    # The widest types first keeps all data aligned, as the format asks.
    order = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)
    for name in order:
        tensor = tensors[name]
        offsets = [end, end := end + tensor.nbytes]
        header[name] = {
            "dtype": _CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": offsets,
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            made = read(name).contiguous()
            assert made.shape == tensors[name].shape, name
            assert made.dtype == tensors[name].dtype, name
            data: Any = made.flatten().view(torch.uint8).numpy()
            file.write(data)
