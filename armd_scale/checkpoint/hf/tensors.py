"""The tensors of a Hugging Face folder: listed by name, read one at a time, written in shards."""

import json
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from armd_scale.errors import CheckpointError
from armd_scale.files import path_inside
from armd_scale.json_files import read_json_object

SAFETENSORS, PICKLED = "model.safetensors", "pytorch_model.bin"
INDEX = ".index.json"
SHARD_BYTES = 5 * 10**9
_DTYPE_CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}


class HfTensors:
    """The tensors of a folder by name; the constructor reads all headers and no data.

    Args:
        folder: folder with model.safetensors or pytorch_model.bin, in one file or in shards with an
            index.

    Raises:
        CheckpointError: there are no tensors, or a file is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path_of, self.tensors = dict[str, Path](), dict[str, Tensor]()
        """Shape and type of each, on the meta device."""
        for path in _tensor_files(folder):
            for name, tensor in _read_header(path).items():
                if name in self._path_of:
                    raise CheckpointError(
                        f"a folder must contain each tensor once, and {name} is both in "
                        f"{self._path_of[name]} and in {path}: remove the file that does not belong"
                    )
                self._path_of[name], self.tensors[name] = path, tensor
        # The last pickle that was opened: torch maps it into memory, but lists its tensors anew.
        self._pickle: tuple[Path, Mapping[str, Tensor]] | None = None
        self._check_index()

    def file_of(self, name: str) -> Path:
        """Return the file that contains a tensor."""
        return self._path_of[name]

    def read(self, name: str) -> Tensor:
        """Read one tensor."""
        path = self._path_of[name]
        if path.suffix == ".bin":
            if self._pickle is None or self._pickle[0] != path:
                self._pickle = (path, _load_pickle(path))
            return self._pickle[1][name]
        # The file is opened for each tensor: pages that were read through a mapping count as this
        # process's memory until the mapping is closed.
        with safe_open(path, framework="pt") as file:
            return file.get_tensor(name)

    def _check_index(self) -> None:
        """Check that every tensor is in the file that the index names."""
        for name, path in _read_index(self.folder).items():
            if self._path_of.get(name) != path:
                raise CheckpointError(
                    f"{path} must contain the tensor {name}, as the index of the folder says, and "
                    "does not: copy the folder again"
                )


def _tensor_files(folder: Path) -> list[Path]:
    """The files with tensors: shards of an index, else one file; safetensors before pickles."""
    shards = sorted(set(_read_index(folder).values()))
    files = shards or [folder / name for name in (SAFETENSORS, PICKLED) if (folder / name).exists()]
    if not files:
        raise CheckpointError(
            f"a Hugging Face folder must contain {SAFETENSORS} or {PICKLED}, or an index of their "
            f"shards (found none in {folder}): give the folder that save_pretrained wrote"
        )
    for path in files:
        if not path.is_file():
            raise CheckpointError(
                f"every shard that the index of a folder names must exist, and {path} is missing: "
                "copy the folder again"
            )
    return files[:1] if not shards else files


def _read_index(folder: Path) -> dict[str, Path]:
    """The file of each tensor according to the index; empty if the folder has no index."""
    if (folder / SAFETENSORS).exists():
        return {}
    for name in (SAFETENSORS + INDEX, PICKLED + INDEX):
        path = folder / name
        if not path.exists():
            continue
        advice = "copy the folder again"
        weight_map = read_json_object(path, error_class=CheckpointError, advice=advice).get(
            "weight_map"
        )
        try:
            if not isinstance(weight_map, dict):
                raise ValueError("there is no such mapping")
            # Links are followed: the cache of the hub consists of them.
            return {
                tensor: path_inside(folder, file, follow_links=True)
                for tensor, file in weight_map.items()
            }
        except ValueError as error:
            raise CheckpointError(
                f"{path} must map tensors to files under weight_map ({error}): {advice}"
            ) from None
    return {}


def _read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, on the meta device."""
    if path.suffix == ".bin":
        return {name: tensor.to("meta") for name, tensor in _load_pickle(path).items()}
    try:
        with safe_open(path, framework="pt") as file:
            return {name: _meta_tensor(file.get_slice(name)) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError) as error:
        raise CheckpointError(
            f"{path} must be a complete safetensors file ({error}): copy it again"
        ) from None


def _meta_tensor(part: Any) -> Tensor:
    code = part.get_dtype()
    dtypes = [dtype for dtype, name in _DTYPE_CODES.items() if name == code]
    # Weights have one of the four types. Any other type is a mask or another buffer, which is never
    # read; uint8 stands for it, and makes the checks in `source` refuse it as a weight.
    return torch.empty(part.get_shape(), dtype=dtypes[0] if dtypes else torch.uint8, device="meta")


def _load_pickle(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a pickle, memory-mapped.

    `weights_only` unpickles tensors and plain containers alone, so that no code of the file runs.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{path} must contain only tensors, no code, in the format of torch 1.6 or later "
            f"({reason}): if you trust the file, save it as safetensors"
        ) from None


def write_tensors(
    folder: Path,
    tensors: Mapping[str, Tensor],
    *,
    read: Callable[[str], Tensor],
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write safetensors files with no more than one tensor in memory; several shards get an index.

    safetensors' own `save_file` needs all tensors of a file at once, so the files are written here.

    Args:
        folder: folder for the files.
        tensors: shape and type of each tensor by name, on the meta device.
        read: returns a tensor by name; called once for each.
        shard_bytes: maximum size of a file, unless a single tensor is larger.
    """
    shards = _split_into_shards(tensors, shard_bytes)
    stem = SAFETENSORS.removesuffix(".safetensors")
    files = [
        f"{stem}-{index:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else SAFETENSORS
        for index in range(1, len(shards) + 1)
    ]
    for file, names in zip(files, shards, strict=True):
        _write_shard(folder / file, {name: tensors[name] for name in names}, read)
    if len(shards) > 1:
        total = sum(tensor.nbytes for tensor in tensors.values())
        file_of = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(file_of.items()))}
        (folder / (SAFETENSORS + INDEX)).write_text(json.dumps(index, indent=2) + "\n")


def _split_into_shards(tensors: Mapping[str, Tensor], shard_bytes: int) -> Sequence[Sequence[str]]:
    shards: list[list[str]] = [[]]
    used_bytes = 0
    for name, tensor in tensors.items():
        if shards[-1] and used_bytes + tensor.nbytes > shard_bytes:
            shards.append([])
            used_bytes = 0
        shards[-1].append(name)
        used_bytes += tensor.nbytes
    return shards


def _write_shard(path: Path, tensors: Mapping[str, Tensor], read: Callable[[str], Tensor]) -> None:
    """Write one safetensors file: length of the header in 8 bytes, header (JSON), data."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    stop = 0
    # The format requires each tensor to be aligned to its item size. Offsets start at a multiple of
    # 8, so writing the widest types first keeps every tensor aligned without padding.
    names = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)
    for name in names:
        tensor = tensors[name]
        offsets = [stop, stop := stop + tensor.nbytes]
        header[name] = {
            "dtype": _DTYPE_CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": offsets,
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the data starts at a multiple of 8
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            tensor = read(name).contiguous()
            assert tensor.shape == tensors[name].shape, name
            assert tensor.dtype == tensors[name].dtype, name
            # numpy has no bfloat16: write the bytes of any type.
            data: Any = tensor.flatten().view(torch.uint8).numpy()
            file.write(data)
