"""Tokenizers of other kinds are refused with what to do."""

import base64
import json
from pathlib import Path

import pytest

from armd_scale.data.preprocess.tokenizer_advice import load_named_tokenizer
from armd_scale.errors import TokenizerError

SAVE = r"AutoTokenizer.from_pretrained\(ID\).save_pretrained\(FOLDER\), and give that folder"


def test_the_id_of_a_hub_model_is_refused_with_the_command_that_fetches_it():
    with pytest.raises(
        TokenizerError, match=r"not downloaded: fetch it by `hf download meta-llama"
    ):
        load_named_tokenizer("meta-llama/Llama-3.1-8B")


@pytest.mark.parametrize("name", ["missing", "./missing", "/a/b", "armd_scale/missing", "x" * 300])
def test_a_path_that_does_not_exist_is_no_hub_model(name: str):
    with pytest.raises(TokenizerError, match="cannot be read") as refusal:
        load_named_tokenizer(name)
    assert "hf download" not in str(refusal.value)


def test_a_tekken_file_is_refused(tmp_path: Path):
    (tmp_path / "tekken.json").write_text(json.dumps({"config": {}, "vocab": []}))
    for spec in (tmp_path, tmp_path / "tekken.json"):
        with pytest.raises(TokenizerError, match=f"tekken.json, .* not supported: .*{SAVE}"):
            load_named_tokenizer(str(spec))


def test_a_checkpoint_of_meta_with_a_tiktoken_model_is_refused(tmp_path: Path):
    lines = [base64.b64encode(bytes([i])) + b" %d\n" % i for i in range(256)]
    (tmp_path / "tokenizer.model").write_bytes(b"".join(lines))
    (tmp_path / "params.json").write_text("{}")
    for spec in (tmp_path, tmp_path / "tokenizer.model"):
        with pytest.raises(TokenizerError, match=f"is a tiktoken file, .*{SAVE}"):
            load_named_tokenizer(str(spec))


def test_a_file_that_is_no_tokenizer_keeps_its_message(tmp_path: Path):
    (tmp_path / "x.model").write_bytes(b"no model")
    with pytest.raises(TokenizerError, match="is not a sentencepiece model"):
        load_named_tokenizer(str(tmp_path / "x.model"))
