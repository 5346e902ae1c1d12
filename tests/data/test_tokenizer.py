import inspect
import json
import os
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from armd_scale.data.tokenizer import HFTokenizer, SentencePieceTokenizer, Tokenizer, load_tokenizer
from armd_scale.data.tokenizer_training import parse_train_spec, train_sentencepiece
from armd_scale.errors import TokenizerError

SOURCES = [inspect.getsource(module) for module in (json, os, tokenizers)]
NASTY = [
    "",
    " ",
    "\n",
    "\t\tif x:\n\t\t    return  y   \n\n\n",
    "def f(a,\tb):\r\n    return a  +  b\r\n",
    "  leading, trailing  ",
    "naïve façade — Ωμέγα, 漢字かな, 🙂🏽, e\u0301",
    "nul \x00, bom \ufeff, separators \u2028\u00a0, replacement \ufffd",
    "the blank's own mark \u2581, twice \u2581\u2581, at the end \u2581",
    "\u2581",
    "not special: <s> </s> <unk> <0x41>",
]


@pytest.fixture(scope="module")
def trained() -> SentencePieceTokenizer:
    return train_sentencepiece(SOURCES, 600)


def save_hf(folder: Path, *, eos: object = "<|end|>", vocab_size: int = 400) -> Path:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SOURCES, trainer)
    tokenizer.enable_truncation(max_length=8)
    tokenizer.enable_padding(length=16)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": eos}))
    return folder


def round_trip(tokenizer: Tokenizer, text: str) -> str:
    return tokenizer.decode(tokenizer.encode_batch([text])[0].tolist())


@pytest.mark.parametrize("text", NASTY)
def test_trained_vocabulary_gives_back_nasty_text(trained: SentencePieceTokenizer, text: str):
    assert round_trip(trained, text) == text


@settings(max_examples=300, deadline=None)
@given(
    text=st.text(
        alphabet=st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(" \t\n\r▁"))
    )
)
def test_trained_vocabulary_gives_back_any_text(trained: SentencePieceTokenizer, text: str):
    assert round_trip(trained, text) == text


def test_training_twice_gives_the_same_model_with_its_special_ids(trained: SentencePieceTokenizer):
    again = train_sentencepiece(iter(SOURCES), 600)
    assert again.fingerprint == trained.fingerprint
    assert (again.vocab_size, again.bos, again.eod) == (600, 1, 2)


def test_newlines_and_blanks_join_tokens(trained: SentencePieceTokenizer):
    indented, flat = trained.encode_batch(["\n        return", "\n return"])
    assert len(indented) <= len(flat) + 2


def test_saved_tokenizers_load_with_the_same_fingerprint(
    trained: SentencePieceTokenizer, tmp_path: Path
):
    trained.save(tmp_path / "sp")
    hf = load_tokenizer(save_hf(tmp_path / "hf"))
    hf.save(tmp_path / "copy")
    for original, folder in ((trained, "sp"), (hf, "copy")):
        copy = load_tokenizer(tmp_path / folder)
        assert copy.fingerprint == original.fingerprint
        assert (copy.eod, copy.vocab_size) == (original.eod, original.vocab_size)
        for one, other in zip(copy.encode_batch(NASTY), original.encode_batch(NASTY), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("text", NASTY)
def test_hf_folder_encodes_whole_texts_without_padding(tmp_path: Path, text: str):
    tokenizer = HFTokenizer(save_hf(tmp_path))
    assert round_trip(tokenizer, text) == text
    assert tokenizer.encode_batch(["", "a" * 999])[0].size == 0


@pytest.mark.parametrize(
    ("eos", "known"), [("<|end|>", True), ({"content": "<|end|>"}, True), (None, False)]
)
def test_end_token_is_the_one_the_folder_names(tmp_path: Path, eos: object, known: bool):
    assert (load_tokenizer(save_hf(tmp_path, eos=eos)).eod == 0) is known


def test_usual_end_token_serves_a_folder_that_names_none(tmp_path: Path):
    folder = save_hf(tmp_path, eos=None)
    definition = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(definition.replace("<|end|>", "</s>"))
    assert load_tokenizer(folder).eod == 0


def test_training_specs():
    assert parse_train_spec("train:sentencepiece:8000") == 8000
    assert parse_train_spec("models/llama") is None
    for wrong in ("train:sentencepiece:many", "train:bpe:8000", "train:sentencepiece:0"):
        with pytest.raises(
            TokenizerError, match=r"must be written train:sentencepiece:VOCAB, .*got"
        ):
            parse_train_spec(wrong)


def test_vocabularies_that_cannot_be():
    with pytest.raises(TokenizerError, match=r"of 40 tokens .* need \d+, so choose a larger"):
        train_sentencepiece(SOURCES, 40)
    with pytest.raises(TokenizerError, match=r"of 90000 tokens .* it yields at most \d+"):
        train_sentencepiece(SOURCES, 90_000)
    with pytest.raises(TokenizerError, match="it contains no text that can be read"):
        train_sentencepiece([], 600)


def test_tokenizers_that_cannot_be_read(tmp_path: Path):
    with pytest.raises(TokenizerError, match=r"missing cannot be read \(No such file.*give a sent"):
        load_tokenizer(tmp_path / "missing")
    (tmp_path / "garbage.model").write_bytes(b"not a model")
    with pytest.raises(TokenizerError, match=r"garbage.model is not a sentencepiece model"):
        load_tokenizer(tmp_path / "garbage.model")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match=r"tokenizer.json cannot be read as a tokenizer"):
        load_tokenizer(tmp_path)


def test_sampling_that_a_file_asks_for_is_switched_off(tmp_path: Path) -> None:
    folder = save_hf(tmp_path / "bpe")
    plain = HFTokenizer(folder).encode_batch(SOURCES)
    definition = json.loads((folder / "tokenizer.json").read_text())
    definition["model"]["dropout"] = 0.5
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    for _ in range(3):
        for ids, expected in zip(HFTokenizer(folder).encode_batch(SOURCES), plain, strict=True):
            assert np.array_equal(ids, expected)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "x.model"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "link to nothing", "too large"])
def test_special_files_are_no_tokenizers(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / name
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "folder":
            path.mkdir()
        case "link to nothing":
            path.symlink_to("none")
        case _:
            with path.open("wb") as file:
                file.truncate(1 << 40)
    for spec in (path, tmp_path if name != "x.model" else path):
        with pytest.raises(TokenizerError, match=r"tokenizer .* cannot be read"):
            load_tokenizer(spec)


@pytest.mark.parametrize("spec", ["a\0b", "x" * 300, "~no_such_user/x"])
def test_names_that_no_file_can_have_are_no_tokenizers(spec: str) -> None:
    with pytest.raises(TokenizerError, match="cannot be read"):
        load_tokenizer(spec)


def test_a_special_configuration_beside_a_tokenizer_is_not_opened(tmp_path: Path) -> None:
    folder = save_hf(tmp_path / "hf")
    (folder / "tokenizer_config.json").unlink()
    os.mkfifo(folder / "tokenizer_config.json")
    (folder / "special_tokens_map.json").write_text("[" * 100_000)
    tokenizer = load_tokenizer(folder)
    tokenizer.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").fingerprint == tokenizer.fingerprint


def test_an_empty_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").touch()
    with pytest.raises(TokenizerError, match="is not a sentencepiece model"):
        load_tokenizer(tmp_path)
