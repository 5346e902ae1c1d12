"""Tests of whole checkpoints: save, open, load, refuse."""

import dataclasses
import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from megatron.core.process_groups_config import ProcessGroupCollection

from armd_scale.checkpoint.load import load_network, load_optimizer, load_weights, open_checkpoint
from armd_scale.checkpoint.save import CheckpointSave
from armd_scale.config.resolve import resolve
from armd_scale.config.schema import ModelConfig, Recipe
from armd_scale.errors import CheckpointError
from armd_scale.model.armd_model import ArmdModel
from tests.support.networks import LLAMA, build
from tests.support.recipes import SMALL, bend
from tests.support.spawn import run_on_ranks
from tests.support.windows import draw_windows


def recipe_of(model: ModelConfig = LLAMA) -> Recipe:
    return bend(SMALL, {"model": model, "data.seq_length": 63})


def save(
    folder: Path,
    network: ArmdModel,
    groups: ProcessGroupCollection,
    *,
    step: int = 3,
    with_optimizer: bool = False,
    tokenizer: Mapping[str, bytes] | None = None,
) -> Path:
    sections = {
        key: {name: torch.full(p.shape, value) for name, p in network.named_parameters()}
        for key, value in (("master", 1.0), ("exp_avg", 2.0), ("exp_avg_sq", 3.0))
    }
    return CheckpointSave(
        folder / "checkpoints",
        step=step,
        network=network,
        recipe=recipe_of(),
        state={"step": step, "consumed_samples": 12},
        optimizer=sections if with_optimizer else {},
        tokenizer=tokenizer or {},
    ).wait()


@pytest.fixture
def network(groups: ProcessGroupCollection) -> ArmdModel:
    return build(LLAMA, groups)


def refused(path: Path, **options: bool) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_network_round_trips_bit_exactly(
    network: ArmdModel, groups: ProcessGroupCollection, tmp_path: Path
) -> None:
    folder = save(tmp_path, network, groups, tokenizer={"tokenizer.model": b"pieces"})
    for path in (folder, folder.parent, tmp_path):
        checkpoint = open_checkpoint(path)
        assert checkpoint.folder == folder
    assert checkpoint.recipe == resolve(recipe_of())
    assert checkpoint.state == {"step": 3, "consumed_samples": 12}
    assert checkpoint.tokenizer_folder is not None
    assert (checkpoint.tokenizer_folder / "tokenizer.model").read_text() == "pieces"
    loaded = load_network(checkpoint, groups=groups)
    assert not loaded.training
    batch = draw_windows("diffusion:4", (20,)).batch()
    assert torch.equal(loaded(batch), network(batch))
    half = load_network(checkpoint, groups=groups, dtype=torch.bfloat16)
    for name, parameter in half.named_parameters():
        assert torch.equal(parameter, network.get_parameter(name).bfloat16())


def test_optimizer_state_round_trips_by_name(
    network: ArmdModel, groups: ProcessGroupCollection, tmp_path: Path
) -> None:
    folder = save(tmp_path, network, groups, with_optimizer=True)
    checkpoint = open_checkpoint(folder, with_optimizer=True)
    assert checkpoint.tokenizer_folder is None
    read = load_optimizer(checkpoint, ["exp_avg_sq", "master"], network=network, groups=groups)
    assert read.keys() == {"exp_avg_sq", "master"}
    for name, parameter in network.named_parameters():
        assert torch.equal(read["master"][name], torch.ones(parameter.shape))
        assert torch.equal(read["exp_avg_sq"][name], torch.full(parameter.shape, 3.0))


def test_given_weights_are_saved_in_place_of_the_networks_own(
    network: ArmdModel, groups: ProcessGroupCollection, tmp_path: Path
) -> None:
    zeros = {name: torch.zeros_like(p) for name, p in network.named_parameters()}
    folder = CheckpointSave(
        tmp_path, step=1, network=network, recipe=recipe_of(), state={}, optimizer={},
        tokenizer={}, weights=zeros,
    ).wait()  # fmt: skip
    load_weights(open_checkpoint(folder), network, groups=groups)
    assert not any(p.any() for p in network.parameters())


def test_a_checkpoint_without_optimizer_state_cannot_be_resumed(
    network: ArmdModel, groups: ProcessGroupCollection, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(save(tmp_path, network, groups))
    with pytest.raises(CheckpointError, match=r"start from its weights instead, with model\.init"):
        load_optimizer(checkpoint, ["master"], network=network, groups=groups)


def test_weights_of_another_model_are_refused(
    network: ArmdModel, groups: ProcessGroupCollection, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(save(tmp_path, network, groups))
    other = build(dataclasses.replace(LLAMA, ffn_hidden=64), groups)
    with pytest.raises(CheckpointError, match=r"mlp.linear_fc1.weight.0 must have the shape"):
        load_weights(checkpoint, other, groups=groups)


def test_the_newest_valid_checkpoint_is_opened(
    network: ArmdModel, groups: ProcessGroupCollection, tmp_path: Path
) -> None:
    first, second = (save(tmp_path, network, groups, step=step) for step in (1, 2))
    assert open_checkpoint(tmp_path).folder == second
    (second / "state.json").write_text("{}")
    assert open_checkpoint(tmp_path).folder == first
    assert f"{second / 'state.json'} has 2 bytes instead of" in refused(second)
    shutil.rmtree(first)
    assert "no valid checkpoint in" in refused(tmp_path)


def test_each_file_is_read_once_to_verify_it(
    network: ArmdModel,
    groups: ProcessGroupCollection,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = save(tmp_path, network, groups, with_optimizer=True)
    read, digest = [], hashlib.file_digest
    monkeypatch.setattr(
        hashlib, "file_digest", lambda f, kind: read.append(f.name) or digest(f, kind)
    )
    open_checkpoint(tmp_path, with_optimizer=True)
    files = [str(path) for path in folder.rglob("*") if path.is_file()]
    assert sorted(read) == sorted(set(files) - {str(folder / "manifest.json")})


def refused_save(groups: ProcessGroupCollection, folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        save(folder, build(LLAMA, groups), groups)
    return str(caught.value)


@pytest.mark.slow
def test_a_write_error_is_raised_on_every_rank(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    one, other = run_on_ranks(refused_save, 2, tmp_path / "file")
    assert one == other
    assert f"cannot write checkpoints to {tmp_path}/file/checkpoints (" in one


def test_optimizer_files_are_verified_only_if_needed(
    network: ArmdModel, groups: ProcessGroupCollection, tmp_path: Path
) -> None:
    folder = save(tmp_path, network, groups, with_optimizer=True)
    file = next((folder / "optimizer").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1])
    open_checkpoint(folder)
    assert str(file) in refused(folder, with_optimizer=True)


def test_a_path_without_checkpoints_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        assert f"no valid checkpoint in {path}: give a checkpoint" in refused(path)


def test_an_interrupted_save_is_refused(
    network: ArmdModel, groups: ProcessGroupCollection, tmp_path: Path
) -> None:
    folder = save(tmp_path, network, groups)
    partial = folder.rename(folder.parent / f".{folder.name}.partial")
    assert f"{partial} was left by an interrupted save" in refused(partial)
    assert "no valid checkpoint in" in refused(tmp_path)
