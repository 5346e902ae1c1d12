"""Checkpoints of format 2 keep their values when they are converted, and run no code."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from armd_scale.checkpoint.store import MANIFEST, read_manifest, verify, write_manifest
from armd_scale.checkpoint.tensor_files import TensorReader
from armd_scale.checkpoint.upgrade import upgrade_checkpoint
from armd_scale.errors import CheckpointError


def tensors_of(section: str) -> dict[str, Tensor]:
    return {
        f"{section}.w": torch.randn(5, 7, dtype=torch.bfloat16),
        f"{section}.b": torch.randn(3),
    }


def write_old_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink(missing_ok=True)
    write_manifest(folder, step=7)
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["sha256"]  # which came with format 3
    (folder / MANIFEST).write_text(json.dumps({**manifest, "format": 2}))


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A checkpoint of format 2: its tensors are written by torch itself."""
    folder = tmp_path / "step_00000007"
    for name, section in (("weights", "weights"), ("optimizer", "master")):
        (folder / name).mkdir(parents=True)
        save(tensors_of(section), checkpoint_id=folder / name, no_dist=True)
    (folder / "state.json").write_text('{"step": 7}')
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "tokenizer.model").write_text("pieces")
    write_old_manifest(folder)
    return folder


def test_every_value_is_kept(old: Path) -> None:
    expected = {}
    for name, section in (("weights", "weights"), ("optimizer", "master")):
        tensors = {key: torch.empty_like(value) for key, value in tensors_of(section).items()}
        load(tensors, checkpoint_id=old / name, no_dist=True)
        expected[name] = tensors
    upgrade_checkpoint(old)
    verify(old)
    assert read_manifest(old).step == 7
    for name, tensors in expected.items():
        with TensorReader(old / name) as reader:
            assert reader.records.keys() == tensors.keys()
            for key, tensor in tensors.items():
                assert torch.equal(reader.read(key), tensor)
    assert (old / "state.json").read_text() == '{"step": 7}'
    assert (old / "tokenizer" / "tokenizer.model").read_text() == "pieces"
    assert not list(old.rglob("*.distcp"))


def test_a_converted_checkpoint_without_an_optimizer_stays_one(old: Path) -> None:
    shutil.rmtree(old / "optimizer")
    (old / "optimizer").mkdir()
    write_old_manifest(old)
    upgrade_checkpoint(old)
    assert not any((old / "optimizer").iterdir())


class Attack:
    """A pickle of this creates a file when it is loaded without care."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.target), "w")


def refused(folder: Path) -> str:
    before = (folder / MANIFEST).read_bytes()
    with pytest.raises(CheckpointError) as caught:
        upgrade_checkpoint(folder)
    assert "\n" not in str(caught.value)
    assert (folder / MANIFEST).read_bytes() == before
    assert not list(folder.parent.glob(".*"))
    return str(caught.value)


def test_code_in_the_index_is_refused_and_does_not_run(old: Path, tmp_path: Path) -> None:
    target = tmp_path / "attacked"
    (old / "weights" / ".metadata").write_bytes(pickle.dumps(Attack(target)))
    write_old_manifest(old)
    assert "must not contain code" in refused(old)
    assert not target.exists()


def test_code_among_the_values_is_refused_and_does_not_run(old: Path, tmp_path: Path) -> None:
    target = tmp_path / "attacked"
    file = old / "weights" / "__0_0.distcp"
    # In a pickle of torch's older format, which torch.load would run without weights_only.
    file.write_bytes(pickle.dumps(Attack(target)).ljust(file.stat().st_size, b"\0"))
    write_old_manifest(old)
    assert "cannot be read" in refused(old)
    assert not target.exists()


def test_a_path_out_of_the_folder_is_refused(old: Path) -> None:
    index = old / "weights" / ".metadata"
    index.write_bytes(index.read_bytes().replace(b"__0_0.distcp", b"../../a.json"))
    write_old_manifest(old)
    assert "outside" in refused(old)


@pytest.mark.parametrize("data", [b"", b"\x80", pickle.dumps(3), pickle.dumps({"a": [1]})])
def test_what_is_no_index_is_refused(old: Path, data: bytes) -> None:
    (old / "weights" / ".metadata").write_bytes(data)
    write_old_manifest(old)
    assert "not the index of a checkpoint" in refused(old)


def test_a_damaged_file_and_another_format_are_refused(old: Path) -> None:
    (old / "state.json").write_text("{}")
    assert "state.json" in refused(old)
    upgraded = old.parent / "step_00000008"
    shutil.copytree(old, upgraded)
    write_old_manifest(upgraded)
    upgrade_checkpoint(upgraded)
    with pytest.raises(CheckpointError, match="must be a checkpoint of format 2"):
        upgrade_checkpoint(upgraded)
