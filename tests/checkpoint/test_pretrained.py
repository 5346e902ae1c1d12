"""Tests of opening and loading a model from either kind of folder."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from megatron.core.process_groups_config import ProcessGroupCollection

from armd_scale.checkpoint.hf.exporter import export
from armd_scale.checkpoint.load import open_checkpoint
from armd_scale.checkpoint.pretrained import load_model, open_model
from armd_scale.checkpoint.save import CheckpointSave
from armd_scale.checkpoint.store import write_manifest
from armd_scale.data.tokenizer_training import train_sentencepiece
from armd_scale.errors import CheckpointError
from tests.support.hf_folders import write_byte_tokenizer, write_folder
from tests.support.networks import LLAMA, build
from tests.support.recipes import SMALL, bend
from tests.support.windows import draw_windows

# With a row for each id of the tokenizer.
MODEL = dataclasses.replace(LLAMA, vocab_size=300)


def save_run(
    run: Path, groups: ProcessGroupCollection, *, precision: str = "fp32", tokenizer: bool = False
) -> Path:
    contents = {}
    if tokenizer:
        folder = run / "tokenizer"
        write_byte_tokenizer(folder, ["a text"], adds_bos=False)
        contents = {path.name: path.read_bytes() for path in folder.iterdir()}
    changes = {"model": MODEL, "data.seq_length": 63, "train.precision": precision}
    return CheckpointSave(
        run / "checkpoints", step=7, network=build(MODEL, groups), recipe=bend(SMALL, changes),
        state={"step": 7}, optimizer={}, tokenizer=contents,
    ).wait()  # fmt: skip


def test_a_checkpoint_and_its_export_are_the_same_model(
    groups: ProcessGroupCollection, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    step_folder = save_run(run, groups, tokenizer=True)
    export(open_checkpoint(run), tmp_path / "hf", groups=groups)
    batch = draw_windows("strided:4", (20,)).batch()
    with torch.no_grad():
        expected = build(MODEL, groups)(batch)
    paths = {run: step_folder, run / "checkpoints": step_folder, step_folder: step_folder}
    for path, opened in {**paths, tmp_path / "hf": tmp_path / "hf"}.items():
        model = load_model(path, device="cpu")
        assert model.path == opened
        assert str(opened) in model.description
        assert model.config.layers == LLAMA.layers
        assert model.tokenizer is not None
        assert model.device.type == "cpu"
        assert not model.network.training
        with torch.no_grad():
            assert torch.equal(model.network(batch), expected)


def test_weights_have_the_training_precision_or_the_requested_type(
    groups: ProcessGroupCollection, tmp_path: Path
) -> None:
    save_run(tmp_path, groups, precision="bf16")
    for requested, dtype in ((None, torch.bfloat16), (torch.float32, torch.float32)):
        model = load_model(tmp_path, device="cpu", dtype=requested, groups=groups)
        assert next(model.network.parameters()).dtype == dtype
        assert model.tokenizer is None


def test_an_ar_folder_takes_the_settings_that_it_leaves_open(
    groups: ProcessGroupCollection, tmp_path: Path
) -> None:
    write_folder(tmp_path / "hf", "llama")
    opened = open_model(tmp_path / "hf", query="learned", max_positions=16)
    model = opened.checkpoint.recipe.model
    assert (model.query, model.max_positions) == ("learned", 16)
    network = opened.load_network(groups=groups, device="cpu")
    assert network.model == model


@pytest.mark.parametrize("setting", [{"query": "learned"}, {"max_positions": 16}])
def test_a_checkpoint_leaves_no_setting_open(
    groups: ProcessGroupCollection, tmp_path: Path, setting: dict
) -> None:
    save_run(tmp_path, groups)
    with pytest.raises(CheckpointError, match=r"only for a Hugging Face folder .* leave it out"):
        load_model(tmp_path, **setting)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(CheckpointError, match=f"no valid checkpoint in {path}: give a"):
            load_model(path)


@pytest.mark.slow
def test_plain_python_needs_no_process_groups(
    groups: ProcessGroupCollection, tmp_path: Path
) -> None:
    save_run(tmp_path, groups)
    program = f"""
from armd_scale.checkpoint.pretrained import load_model
from armd_scale.config.schema import ParallelConfig
from armd_scale.parallel.environment import read_environment
from armd_scale.parallel.process_groups import process_groups

first, second = load_model({str(tmp_path)!r}), load_model({str(tmp_path)!r})
assert first.network.groups.tp.size() == second.network.groups.dp.size() == 1
with process_groups(read_environment(), ParallelConfig()) as groups:  # as commands do
    third = load_model({str(tmp_path)!r}, groups=groups)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "Error" not in result.stderr


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(
    groups: ProcessGroupCollection, tmp_path: Path, value: float
) -> None:
    network = build(LLAMA, groups)
    with torch.no_grad():
        next(iter(network.parameters()))[0, 0] = value
    folder = CheckpointSave(
        tmp_path / "checkpoints", step=7, network=network, recipe=bend(SMALL, {"model": LLAMA}),
        state={"step": 7}, optimizer={}, tokenizer={},
    ).wait()  # fmt: skip
    with pytest.raises(CheckpointError, match=rf"must be finite, and \S+ of {folder} .* has NaN"):
        load_model(folder, device="cpu")


def test_a_model_that_does_not_fit_into_memory_is_refused(
    groups: ProcessGroupCollection, tmp_path: Path
) -> None:
    folder = save_run(tmp_path, groups)
    path = folder / "recipe.yaml"
    path.write_text(path.read_text().replace("ffn_hidden: 48", "ffn_hidden: 900000000"))
    (folder / "manifest.json").unlink()
    write_manifest(folder, step=7)
    with pytest.raises(CheckpointError, match=rf"weights of {folder} .* must fit the memory"):
        load_model(folder, device="cpu")


def test_more_layers_than_tensors_are_refused_before_they_are_built(
    groups: ProcessGroupCollection, tmp_path: Path
) -> None:
    folder = save_run(tmp_path, groups)
    path = folder / "recipe.yaml"
    path.write_text(path.read_text().replace("layers: 4\n", "layers: 9000\n", 1))
    (folder / "manifest.json").unlink()
    write_manifest(folder, step=7)
    message = "tensors for model.layers = 9000: use another"
    with pytest.raises(CheckpointError, match=message):
        load_model(folder, device="cpu")
    with pytest.raises(CheckpointError, match=message):
        export(open_checkpoint(folder), tmp_path / "hf", groups=groups)


def test_an_export_needs_the_tensors_of_the_recipe(
    groups: ProcessGroupCollection, tmp_path: Path
) -> None:
    folder = save_run(tmp_path, groups)
    path = folder / "recipe.yaml"
    path.write_text(path.read_text().replace("ffn_hidden: ", "ffn_hidden: 9", 1))
    (folder / "manifest.json").unlink()
    write_manifest(folder, step=7)
    with pytest.raises(CheckpointError, match=r"must have the shape .* which follows from the rec"):
        export(open_checkpoint(folder), tmp_path / "hf", groups=groups)
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize("is_recorded", [True, False])
def test_texts_of_a_run_of_an_earlier_version_start_as_its_documents_did(
    groups: ProcessGroupCollection, tmp_path: Path, is_recorded: bool
) -> None:
    """Without BOS, after the end of another document: nothing in such a checkpoint says so."""
    tokenizer = train_sentencepiece(["a text\n" * 20], 270)
    tokenizer.save(tmp_path / "tokenizer")
    names = ["tokenizer.model", *["tokenizer_config.json"] * is_recorded]
    changes = {"model.vocab_size": 270}
    model = bend(SMALL, changes).model
    CheckpointSave(
        tmp_path / "run", step=7, network=build(model, groups), recipe=bend(SMALL, changes),
        state={"step": 7}, optimizer={},
        tokenizer={name: (tmp_path / "tokenizer" / name).read_bytes() for name in names},
    ).wait()  # fmt: skip
    loaded = open_model(tmp_path / "run").tokenizer
    assert loaded is not None
    assert loaded.prefix_ids == ((tokenizer.bos,) if is_recorded else ())
    assert loaded.start_id == (tokenizer.bos if is_recorded else tokenizer.eod)
