"""The tokenizer of a run: trained or given."""

import json
from pathlib import Path

import pytest

from armd_scale.data.preprocess.pipeline import preprocess
from armd_scale.data.tokenizer import load_tokenizer
from armd_scale.errors import TokenizerError
from tests.support.corpus import MakeOptions, result_files


def test_trained_vocabulary_is_the_same_in_every_run(options: MakeOptions, tmp_path: Path):
    for name, workers in (("one/out", 1), ("two/out", 2)):
        preprocess(options(name, tokenizer="train:sentencepiece:310", workers=workers))
    assert result_files(tmp_path / "one") == result_files(tmp_path / "two")
    assert load_tokenizer(tmp_path / "one/out.tokenizer").vocab_size == 310


def test_tokenizer_without_an_end_token_is_an_error(options: MakeOptions, tmp_path: Path):
    folder = tmp_path / "hf"
    folder.mkdir()
    vocab = {"[UNK]": 0, "text": 1}
    definition = {"model": {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"}}
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": [], **definition}))
    with pytest.raises(TokenizerError, match="must name an end-of-sequence token"):
        preprocess(options(tokenizer=str(folder)))
