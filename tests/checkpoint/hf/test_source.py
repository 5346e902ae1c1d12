"""Tests of reading Hugging Face folders, and of the errors for those that cannot be converted."""

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
    """A valid folder that the test may damage."""
    return Path(shutil.copytree(llama, tmp_path / "hf"))


def refused(hf: Path, groups, **settings) -> str:
    """Convert a bad folder: return the message, and check that nothing was written."""
    output = hf.parent / "armd"
    request = ConversionRequest(
        hf=hf, output=output, settings=ArmdSettings(**settings), parallel=ParallelConfig()
    )
    before = sorted(hf.parent.iterdir())
    with pytest.raises(CheckpointError) as caught:
        convert(request, groups=groups)
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
        (
            {"model_type": "smollm3"},
            "model_type smollm3: some of its layers have no position embedding",
        ),
        ({"model_type": "mixtral"}, "model_type mixtral: its MLPs are mixtures of experts"),
        (
            {"model_type": "mamba"},
            r"supported model \(llama, .* gpt2\), and has model_type mamba: convert",
        ),
        ({"quantization_config": {"bits": 4}}, "got a quantization_config"),
        ({"hidden_act": "relu"}, "hidden_act relu, where only silu, swish are supported"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "embedding of type dynamic"),
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "attention_factor": 1.5}},
            "YaRN with attention_factor",
        ),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "factor 0.5"),
        ({"num_hidden_layers": "four"}, "a configuration that transformers accepts"),
        ({"intermediate_size": 64}, r"mlp.*\.weight in .*model.safetensors must have the shape"),
        (
            {"num_hidden_layers": 3},
            "only tensors of the model in its config.json, and contains model.layers.3",
        ),
        ({"num_hidden_layers": 5}, r"hf must contain the tensor model.layers.4"),
        ({"tie_word_embeddings": True}, "lm_head.weight in .*safetensors must equal the embedding"),
        ({"armd": {"query": "anchor"}}, "must have the keys two_stream_layers, query"),
    ],
)
def test_unsupported_configs_are_refused_with_a_reason(hf, groups, values, sentence):
    change_config(hf, **values)
    message = refused(hf, groups)
    assert re.search(sentence, message), message


def test_a_sliding_window_limits_the_maximum_length(groups, tmp_path):
    folder = write_folder(tmp_path / "hf", "mistral-window")
    assert refused(folder, groups).endswith("--max-positions 24, up to which both are equal")
    assert "--max-positions 24" in refused(folder, groups, max_positions=25)
    HfWeights(HfCheckpoint(folder, ArmdSettings(max_positions=24)), groups)


def test_keys_that_mean_nothing_are_no_reason_to_refuse(hf, groups):
    """A quantization that is null, and a window of a family that has no windows."""
    change_config(hf, quantization_config=None, sliding_window=8)
    assert HfCheckpoint(hf, ArmdSettings()).model.max_positions == 64


def test_a_missing_head_names_the_key_that_ties_it(hf, groups):
    change_tensors(hf, lambda tensors: tensors.pop("lm_head.weight"))
    assert "lm_head.weight" in (message := refused(hf, groups))
    assert "or set tie_word_embeddings to true there" in message


def test_a_position_table_keeps_its_length(groups, tmp_path):
    folder = write_folder(tmp_path / "hf", "gpt2")
    assert "--max-positions must be 64" in refused(folder, groups, max_positions=32)


@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_a_missing_or_broken_config_is_refused(hf, groups, text):
    (hf / "config.json").unlink()
    if text is not None:
        (hf / "config.json").write_text(text)
    assert str(hf / "config.json") in refused(hf, groups)


def test_missing_unexpected_and_misshapen_tensors_are_named(hf, groups):
    norm = "model.layers.2.input_layernorm.weight"

    def cut(tensors):
        tensors[norm] = tensors[norm][:-1].clone()

    change_tensors(hf, cut)
    assert f"{norm} in {hf / WEIGHTS} must have the shape (32,)" in refused(hf, groups)
    change_tensors(hf, lambda tensors: tensors.pop(norm))
    assert f"must contain the tensor {norm}, which follows from its config.json" in refused(
        hf, groups
    )
    change_tensors(hf, lambda tensors: tensors.update({norm: torch.ones(32), "x": torch.ones(1)}))
    assert (
        f"{hf / WEIGHTS} must contain only tensors of the model in its config.json, and contains x"
        in (refused(hf, groups))
    )
    change_tensors(
        hf, lambda tensors: tensors.update(x=torch.ones(1), **{norm: torch.ones(32).int()})
    )
    assert f"{norm} in {hf / WEIGHTS} must have a floating-point type of 16, 32 or 64" in refused(
        hf, groups
    )


def test_missing_and_truncated_files_are_named(hf, sharded, groups, tmp_path):
    data = (hf / WEIGHTS).read_bytes()
    for damaged in (data[:-1], data[:100], b""):
        (hf / WEIGHTS).write_bytes(damaged)
        assert f"{hf / WEIGHTS} must be a complete safetensors file" in refused(hf, groups)
    (hf / WEIGHTS).unlink()
    assert f"(found none in {hf})" in refused(hf, groups)
    shards = Path(shutil.copytree(sharded, tmp_path / "shards"))
    second = sorted(shards.glob("*.safetensors"))[1]
    second.unlink()
    assert f"{second} is missing" in refused(shards, groups)
    save_file({"x": torch.ones(1)}, second)
    assert f"{second} must contain the tensor" in refused(shards, groups)
    (shards / "model.safetensors.index.json").write_text("{}")
    assert "must map tensors to files under weight_map" in refused(shards, groups)


def test_a_stored_head_that_equals_the_tied_embedding_is_accepted(tied, groups, tmp_path):
    folder = Path(shutil.copytree(tied, tmp_path / "hf"))

    def copy_head(tensors):
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    change_tensors(folder, copy_head)
    assert HfCheckpoint(folder, ArmdSettings()).model.tie_embeddings
    HfWeights(HfCheckpoint(folder, ArmdSettings()), groups)


class Malice:
    def __reduce__(self):
        return print, ("this must never run",)


def test_pickles_are_read_but_never_run_code(llama, groups, tmp_path, capsys):
    folder = tmp_path / "hf"
    folder.mkdir()
    shutil.copyfile(llama / "config.json", folder / "config.json")
    tensors = load_file(llama / WEIGHTS)
    torch.save(tensors, folder / "pytorch_model.bin")
    one, two = (HfWeights(HfCheckpoint(path, ArmdSettings()), groups) for path in (llama, folder))
    assert all(torch.equal(one.build(name), two.build(name)) for name in one.tensors())
    torch.save({**tensors, "x": Malice()}, folder / "pytorch_model.bin")
    message = refused(folder, groups)
    assert f"{folder / 'pytorch_model.bin'} must contain only tensors, no code" in message
    assert "never run" not in capsys.readouterr().out


def test_old_buffers_and_names_without_prefix_are_accepted(groups, tmp_path):
    one = write_folder(tmp_path / "one", "gpt2")
    two = tmp_path / "two"
    make_model("gpt2").transformer.save_pretrained(two)

    def add_masks(tensors):
        tensors |= {f"h.{n}.attn.bias": torch.ones(1, 1, 64, 64).bool() for n in range(4)}
        tensors["h.0.attn.masked_bias"] = torch.tensor(-1e4)

    change_tensors(two, add_masks)
    first, second = (HfWeights(HfCheckpoint(path, ArmdSettings()), groups) for path in (one, two))
    assert all(torch.equal(first.build(name), second.build(name)) for name in first.tensors())
