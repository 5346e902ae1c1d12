"""Folders that cannot be converted: one sentence, with file and tensor, and nothing written."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from armd_scale.checkpoint.hf.importer import ConversionRequest, convert
from armd_scale.checkpoint.hf.source import ArmdSettings, HfCheckpoint, HfWeights
from armd_scale.config.schema import ParallelConfig
from armd_scale.errors import CheckpointError
from tests.support.hf_folders import make_model, write_folder

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("hf") / "llama", "llama")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hf") / "sharded"
    return write_folder(folder, "llama", max_shard_size="20KB")


@pytest.fixture(scope="module")
def tied(tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("hf") / "qwen2", "qwen2")


@pytest.fixture
def hf(llama: Path, tmp_path: Path) -> Path:
    """A sound folder to be bent."""
    return Path(shutil.copytree(llama, tmp_path / "hf"))


def refused(hf: Path, groups, **settings) -> str:
    """The sentence that a folder is refused with."""
    output = hf.parent / "armd"
    wanted = ConversionRequest(
        hf=hf, output=output, settings=ArmdSettings(**settings), parallel=ParallelConfig()
    )
    before = sorted(hf.parent.iterdir())
    with pytest.raises(CheckpointError) as caught:
        convert(wanted, groups=groups)
    assert "\n" not in str(caught.value)
    assert sorted(hf.parent.iterdir()) == before
    return str(caught.value)


def change_config(hf: Path, **values) -> None:
    config = json.loads((hf / "config.json").read_text())
    (hf / "config.json").write_text(json.dumps(config | values))


def change_tensors(hf: Path, change) -> None:
    tensors = load_file(hf / WEIGHTS)
    change(tensors)
    save_file(tensors, hf / WEIGHTS, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"model_type": "smollm3"}, "model_type smollm3, and some of its layers know no positions"),
        ({"model_type": "mixtral"}, "model_type mixtral, and its MLPs are mixtures of experts"),
        ({"model_type": "mamba"}, r"can be \(llama, .* gpt2\), and has model_type mamba: convert"),
        ({"quantization_config": {"bits": 4}}, "names a quantization_config"),
        ({"hidden_act": "relu"}, "hidden_act relu where silu, swish are known"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "embedding of type dynamic"),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "attention_factor": 1.5}},
            "YaRN with attention_factor",
        ),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "factor 0.5"),
        ({"num_hidden_layers": "four"}, "a configuration that transformers accepts"),
        ({"intermediate_size": 64}, r"mlp.*\.weight in .*model.safetensors must have the shape"),
        ({"num_hidden_layers": 3}, "and no others, and holds model.layers.3"),
        ({"num_hidden_layers": 5}, r"hf must hold the tensor model.layers.4"),
        ({"tie_word_embeddings": True}, "lm_head.weight in .*safetensors must equal the embedding"),
        ({"armd": {"query": "anchor"}}, "must have the keys two_stream_layers, query"),
    ],
)
def test_configs_that_are_none_of_ours(hf, groups, values, sentence):
    change_config(hf, **values)
    message = refused(hf, groups)
    assert re.search(sentence, message), message


def test_a_window_is_exact_up_to_its_width(groups, tmp_path):
    folder = write_folder(tmp_path / "hf", "mistral-window")
    assert refused(folder, groups).endswith("--max-positions 24, up to which both are equal")
    assert "--max-positions 24" in refused(folder, groups, max_positions=25)
    HfWeights(HfCheckpoint(folder, ArmdSettings(max_positions=24)), groups)


def test_a_position_table_is_neither_cut_nor_grown(groups, tmp_path):
    folder = write_folder(tmp_path / "hf", "gpt2")
    assert "--max-positions must be 64" in refused(folder, groups, max_positions=32)


@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_no_config(hf, groups, text):
    (hf / "config.json").unlink()
    if text is not None:
        (hf / "config.json").write_text(text)
    assert f"{hf / 'config.json'} cannot be read" in refused(hf, groups)


def test_tensors_that_are_missing_left_over_or_misshapen(hf, groups):
    norm = "model.layers.2.input_layernorm.weight"

    def cut(tensors):
        tensors[norm] = tensors[norm][:-1].clone()

    change_tensors(hf, cut)
    assert f"{norm} in {hf / WEIGHTS} must have the shape (32,)" in refused(hf, groups)
    change_tensors(hf, lambda tensors: tensors.pop(norm))
    assert f"must hold the tensor {norm} of its config.json" in refused(hf, groups)
    change_tensors(hf, lambda tensors: tensors.update({norm: torch.ones(32), "x": torch.ones(1)}))
    assert (
        f"{hf / WEIGHTS} must hold the tensors of its config.json and no others, and holds x"
        in (refused(hf, groups))
    )
    change_tensors(
        hf, lambda tensors: tensors.update(x=torch.ones(1), **{norm: torch.ones(32).int()})
    )
    assert f"{norm} in {hf / WEIGHTS} must hold numbers of 16, 32 or 64" in refused(hf, groups)


def test_files_that_are_missing_or_cut_short(hf, sharded, groups, tmp_path):
    data = (hf / WEIGHTS).read_bytes()
    for damaged in (data[:-1], data[:100], b""):
        (hf / WEIGHTS).write_bytes(damaged)
        assert f"{hf / WEIGHTS} must be a whole safetensors file" in refused(hf, groups)
    (hf / WEIGHTS).unlink()
    assert f"{hf} holds none" in refused(hf, groups)
    shards = Path(shutil.copytree(sharded, tmp_path / "shards"))
    second = sorted(shards.glob("*.safetensors"))[1]
    second.unlink()
    assert f"{second} is missing" in refused(shards, groups)
    save_file({"x": torch.ones(1)}, second)
    assert f"{second} must hold the tensor" in refused(shards, groups)
    (shards / "model.safetensors.index.json").write_text("{}")
    assert "must map tensors to files under weight_map" in refused(shards, groups)


def test_a_tied_head_that_is_stored_as_well_is_fine_if_equal(tied, groups, tmp_path):
    folder = Path(shutil.copytree(tied, tmp_path / "hf"))

    def copy_head(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    change_tensors(folder, copy_head)
    assert HfCheckpoint(folder, ArmdSettings()).model.tie_embeddings
    HfWeights(HfCheckpoint(folder, ArmdSettings()), groups)


class Malice:
    def __reduce__(self):
        return print, ("this must never run",)


def test_pickles_are_read_unless_they_run_code(llama, groups, tmp_path, capsys):
    folder = tmp_path / "hf"
    folder.mkdir()
    shutil.copyfile(llama / "config.json", folder / "config.json")
    tensors = load_file(llama / WEIGHTS)
    torch.save(tensors, folder / "pytorch_model.bin")
    one, two = (HfWeights(HfCheckpoint(path, ArmdSettings()), groups) for path in (llama, folder))
    assert all(torch.equal(one.make(name), two.make(name)) for name in one.tensors())
    torch.save({**tensors, "x": Malice()}, folder / "pytorch_model.bin")
    message = refused(folder, groups)
    assert f"{folder / 'pytorch_model.bin'} must hold tensors and nothing that runs code" in message
    assert "never run" not in capsys.readouterr().out


def test_buffers_of_older_folders_and_names_of_the_base_class(groups, tmp_path):
    one = write_folder(tmp_path / "one", "gpt2")
    two = tmp_path / "two"
    make_model("gpt2").transformer.save_pretrained(two)

    def add_masks(tensors):
        tensors |= {f"h.{n}.attn.bias": torch.ones(1, 1, 64, 64).bool() for n in range(4)}
        tensors["h.0.attn.masked_bias"] = torch.tensor(-1e4)

    change_tensors(two, add_masks)
    first, second = (HfWeights(HfCheckpoint(path, ArmdSettings()), groups) for path in (one, two))
    assert all(torch.equal(first.make(name), second.make(name)) for name in first.tensors())
