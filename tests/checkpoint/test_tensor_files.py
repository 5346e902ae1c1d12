"""Files of tensors: safetensors reads them, and damaged or crafted ones are refused."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from armd_scale.checkpoint.tensor_files import (
    DTYPES,
    INDEX_FILE,
    TensorPart,
    TensorReader,
    TensorRecord,
    dtype_name,
    merge_records,
    read_index,
    write_index,
    write_tensors,
)
from armd_scale.errors import CheckpointError

Index = dict[str, Any]


def random_tensor(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    values = torch.arange(1, 1 + torch.Size(shape).numel()).reshape(shape)
    return values.to(dtype)


def write_parts(folder: Path, name: str, tensor: Tensor, dim: int, cuts: list[int]) -> None:
    """Write a tensor in parts of the given sizes along `dim`, one in the file of each rank."""
    records, start = [], 0
    for rank, part in enumerate(tensor.split(cuts, dim)):
        file = f"rank_{rank:05d}.safetensors"
        write_tensors(folder / file, {name: part}, get_tensor=lambda _, part=part: part)
        stop = start + cuts[rank]
        stored = TensorPart(start, stop, file)
        shape = tuple(tensor.shape)
        records.append({name: TensorRecord(dtype_name(tensor.dtype), shape, dim, (stored,))})
        start = stop
    # The results of ranks may come in any order.
    write_index(folder, merge_records(reversed(records)))


def test_the_safetensors_package_reads_every_type_and_shape(tmp_path: Path) -> None:
    tensors = {name: random_tensor((3, 5), dtype) for name, dtype in DTYPES.items()}
    tensors |= {"scalar": torch.tensor(2.5), "empty": torch.empty(0, 4), "α.weight": torch.ones(1)}
    path = tmp_path / "rank_00000.safetensors"
    record = write_tensors(path, tensors, get_tensor=tensors.__getitem__)
    data = path.read_bytes()
    assert record == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    read = load_file(path)
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype, name
        assert torch.equal(read[name], tensor), name


def test_values_that_are_views_are_written_alone(tmp_path: Path) -> None:
    whole = random_tensor((4, 6))
    view = whole.t()[1:3]
    path = tmp_path / "rank_00000.safetensors"
    write_tensors(path, {"view": view}, get_tensor=lambda _: view)
    assert torch.equal(load_file(path)["view"], view)
    assert path.stat().st_size < 400


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_range_along_any_dimension_is_read_from_any_parts(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)))
    dim = data.draw(st.integers(0, len(shape) - 1))
    cuts = []
    while sum(cuts) < shape[dim]:
        cuts.append(data.draw(st.integers(1, shape[dim] - sum(cuts))))
    tensor = random_tensor(shape)
    folder = tmp_path_factory.mktemp("parts")
    write_parts(folder, "w", tensor, dim, cuts)
    wanted = data.draw(st.integers(0, len(shape) - 1))
    start = data.draw(st.integers(0, shape[wanted] - 1))
    stop = data.draw(st.integers(start + 1, shape[wanted]))
    with TensorReader(folder) as reader:
        assert torch.equal(reader.read("w"), tensor)
        part = reader.read("w", dim=wanted, start=start, stop=stop)
    assert torch.equal(part, tensor.narrow(wanted, start, stop - start))


def set_part(key: str, value: object) -> Callable[[Index], None]:
    return lambda entry: entry["parts"][0].update({key: value})


def set_key(key: str, value: object) -> Callable[[Index], None]:
    return lambda entry: entry.update({key: value})


CRAFTED: dict[str, Callable[[Index], object]] = {
    "a path out of the folder": set_part("file", "../secret.safetensors"),
    "an absolute path": set_part("file", "/etc/rank_00000.safetensors"),
    "no text": set_part("file", 7),
    "a gap": set_part("stop", 1),
    "past the end": set_part("stop", 9),
    "a negative start": set_part("start", -1),
    "a fraction": set_part("stop", 4.0),
    "true": set_part("start", False),
    "no such dimension": set_key("dim", 2),
    "a negative dimension": set_key("dim", -1),
    "a negative size": set_key("shape", [-4, 6]),
    "a huge size": set_key("shape", [1 << 60, 6]),
    "an unknown type": set_key("dtype", "F13"),
    "an unhashable type": set_key("dtype", []),
    "no parts": set_key("parts", []),
    "another key": set_key("code", "print()"),
    "a missing key": lambda entry: entry.pop("dim"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_parts(tmp_path, "w", random_tensor((4, 6)), 0, [4])
    return tmp_path


def refused(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught, TensorReader(folder) as reader:
        reader.read("w")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("change", CRAFTED.values(), ids=CRAFTED)
def test_a_crafted_index_is_refused(folder: Path, change: Callable[[Index], object]) -> None:
    path = folder / INDEX_FILE
    index = json.loads(path.read_text())
    change(index["tensors"]["w"])
    path.write_text(json.dumps(index))
    assert str(path) in refused(folder)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"tensors": 3}', '{"tensors": {"w": 3}}', "[" * 100_000, "\ud800"]
)
def test_an_index_that_is_none_is_refused(folder: Path, text: str) -> None:
    (folder / INDEX_FILE).write_bytes(text.encode("utf-8", "surrogatepass"))
    assert str(folder / INDEX_FILE) in refused(folder)


def test_a_file_that_disagrees_with_the_index_is_refused(folder: Path) -> None:
    path = folder / "rank_00000.safetensors"
    for other in (random_tensor((3, 6)), random_tensor((4, 6), torch.bfloat16)):
        write_tensors(path, {"w": other}, get_tensor=lambda _, other=other: other)
        assert str(path) in refused(folder)
    write_tensors(path, {"v": random_tensor((4, 6))}, get_tensor=lambda _: random_tensor((4, 6)))
    assert str(path) in refused(folder)


@pytest.mark.parametrize("size", [0, 4, 8, 40, -1])
def test_a_truncated_or_missing_file_is_refused(folder: Path, size: int) -> None:
    path = folder / "rank_00000.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    assert str(path) in refused(folder)
    path.unlink()
    assert str(path) in refused(folder)


def test_the_index_round_trips(folder: Path) -> None:
    part = TensorPart(0, 4, "rank_00000.safetensors")
    assert read_index(folder) == {"w": TensorRecord("F32", (4, 6), 0, (part,))}
