"""Tests of config.json: as transformers 4 and 5 write it, and as the exporter does."""

import dataclasses
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from armd_scale.checkpoint.hf.config import (
    CONFIG,
    differences,
    hf_config_from_model,
    model_config_from_hf,
)
from armd_scale.checkpoint.hf.families import FAMILIES, UNSUPPORTED
from armd_scale.checkpoint.hf.source import ArmdSettings, HfCheckpoint
from armd_scale.config.resolve import resolve_model
from armd_scale.config.schema import ModelConfig, RopeScaling
from armd_scale.errors import CheckpointError
from tests.support.hf_folders import CONFIGS, write_folder

LLAMA_31 = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 99, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 131072, "tie_word_embeddings": False,
}  # fmt: skip
BOUNDS = {
    "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip


def section(config: dict, **options) -> ModelConfig:
    return model_config_from_hf(config, source=Path("folder"), **options)


def test_rotary_keys_of_transformers_4_and_5_are_equivalent():
    scaling = {"rope_type": "llama3", **BOUNDS}
    four = section({**LLAMA_31, "rope_theta": 5e5, "rope_scaling": scaling})
    five = section({**LLAMA_31, "rope_parameters": {"rope_theta": 5e5, **scaling}})
    assert four == five
    assert four.rope_theta == 5e5
    assert four.rope_scaling == RopeScaling(
        rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    )  # fmt: skip
    older = section({**LLAMA_31, "rope_scaling": {"type": "linear", "factor": 4.0}})
    assert older.rope_scaling == RopeScaling(rope_type="linear", factor=4.0)
    neox = {"model_type": "gpt_neox", "hidden_size": 64, "num_attention_heads": 4}
    pythia = section({**neox, "rotary_pct": 0.5, "rotary_emb_base": 5000})
    assert (pythia.partial_rotary_factor, pythia.rope_theta) == (0.5, 5000.0)


def test_missing_config_keys_have_the_defaults_of_transformers():
    model = section({"model_type": "gpt2", "n_embd": 48, "n_layer": 3, "n_head": 4})
    assert (model.ffn_hidden, model.vocab_size, model.max_positions) == (192, 50257, 1024)
    assert model.tie_embeddings
    assert model.activation == "gelu_tanh"


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_section_is_exported_as_its_own_family(name):
    model_type, values = CONFIGS[name]
    model = section(
        {"model_type": model_type, **values}, max_positions=64 if "gpt2" in name else 24
    )
    assert model.max_positions is not None
    written = hf_config_from_model(resolve_model(model), max_positions=model.max_positions)
    is_llama = model_type == "mistral"  # without its window Mistral is a Llama
    assert written["model_type"] == ("llama" if is_llama else model_type)
    assert not differences(section(written, max_positions=model.max_positions), model)


def test_the_error_names_the_nearest_family_and_what_it_lacks():
    model = section(LLAMA_31 | {"max_position_embeddings": 64})
    odd = dataclasses.replace(model, parallel_residual=True)
    with pytest.raises(
        CheckpointError, match=r"llama, does not have model\.parallel_residual=True"
    ):
        hf_config_from_model(resolve_model(odd), max_positions=64)


def test_no_family_is_both_supported_and_unsupported():
    assert not FAMILIES.keys() & UNSUPPORTED.keys()


HOSTILE: tuple[Any, ...] = (None, True, -1, 0, 1.5, 10**9, 10**200, [], {}, "x")


@pytest.mark.parametrize("value", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_values_are_read_or_refused(tmp_path: Path, value: Any) -> None:
    folder = write_folder(tmp_path / "llama", "llama")
    config = json.loads((folder / CONFIG).read_text())
    for key in (*config, "armd"):
        (folder / CONFIG).write_text(json.dumps({**config, key: value}))
        with suppress(CheckpointError):
            HfCheckpoint(folder, ArmdSettings())


def test_more_layers_than_tensors_are_refused_before_they_are_built(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "llama", "llama")
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, "num_hidden_layers": 9000}))
    with pytest.raises(CheckpointError, match="says 9000 layers for 39 tensors"):
        HfCheckpoint(folder, ArmdSettings())
