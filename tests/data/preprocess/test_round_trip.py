"""Special tokens that are written out in a text, and tokenizers that lose text."""

import json
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from armd_scale.data.indexed_reader import open_shards
from armd_scale.data.manifest import ShardIndex
from armd_scale.data.preprocess.merge import merge
from armd_scale.data.preprocess.pipeline import preprocess
from armd_scale.data.preprocess.round_trip import is_sampled
from armd_scale.errors import ShardError
from tests.support.corpus import MakeOptions, document_texts, json_lines

EOS, EOT = 1, 2
TEXTS = ["ends </s> twice </s>", "no mark", "<|eot|>"]


@pytest.fixture
def byte_tokenizer(tmp_path: Path) -> str:
    """A byte-level tokenizer with special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "</s>", "<|eot|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(["some text"], trainer)
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    return str(folder)


def write(folder: Path, texts: list[str]) -> tuple[str]:
    (folder / "x.jsonl").write_bytes(json_lines(texts))
    return (str(folder / "x.jsonl"),)


def test_special_tokens_in_a_text_are_text_unless_the_user_says_ids(
    options: MakeOptions, tmp_path: Path, byte_tokenizer: str, caplog: pytest.LogCaptureFixture
):
    inputs = write(tmp_path, TEXTS)
    counted = {"</s>": 2, "<|eot|>": 1}
    with caplog.at_level("INFO"):
        (manifest,) = preprocess(options("text", inputs=inputs, tokenizer=byte_tokenizer))
    assert "found 3 special tokens written out in the text, which became ordinary" in caplog.text
    assert (manifest.special_tokens, manifest.read.special_tokens) == ("text", counted)
    assert document_texts(tmp_path / "text") == TEXTS
    shards = open_shards(tmp_path / "text")
    assert shards.read(0, shards.num_tokens).tolist().count(EOS) == 3

    (manifest,) = preprocess(
        options("ids", inputs=inputs, tokenizer=byte_tokenizer, special_tokens="ids")
    )
    assert (manifest.special_tokens, manifest.read.special_tokens) == ("ids", counted)
    shards = open_shards(tmp_path / "ids")
    tokens = shards.read(0, shards.num_tokens).tolist()
    assert (tokens.count(EOS), tokens.count(EOT)) == (5, 1)
    # Ids are not decoded to text; that is no loss of the tokenizer.
    assert (manifest.read.round_trip.documents, manifest.read.round_trip.changed) == (1, 0)


def test_the_choice_belongs_to_the_plan(options: MakeOptions, tmp_path: Path, byte_tokenizer: str):
    inputs = write(tmp_path, TEXTS)
    preprocess(options(inputs=inputs, tokenizer=byte_tokenizer))
    with pytest.raises(ShardError, match="already exists and was made from other inputs"):
        preprocess(options(inputs=inputs, tokenizer=byte_tokenizer, special_tokens="ids"))


def test_worker_processes_encode_the_same(
    options: MakeOptions, tmp_path: Path, byte_tokenizer: str
):
    inputs = write(tmp_path, [text * 50 for text in TEXTS] * 800)
    for workers in (1, 2):
        preprocess(options(f"{workers}", inputs=inputs, tokenizer=byte_tokenizer, workers=workers))
    assert (tmp_path / "1.bin").read_bytes() == (tmp_path / "2.bin").read_bytes()


def test_control_tokens_of_sentencepiece_are_counted_and_stay_text(
    options: MakeOptions, tmp_path: Path
):
    (manifest,) = preprocess(options(inputs=write(tmp_path, ["the <s> and </s>"])))
    assert manifest.read.special_tokens == {"</s>": 1, "<s>": 1}
    assert document_texts(tmp_path / "out") == ["the <s> and </s>"]


def test_a_tokenizer_that_loses_text_is_named(
    options: MakeOptions, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "text.txt").write_text("the words of a text\nand more of them\n" * 50)
    sentencepiece.SentencePieceTrainer.train(  # type: ignore[attr-defined]
        input=str(tmp_path / "text.txt"),
        model_prefix=str(tmp_path / "lossy"),
        vocab_size=22,
        minloglevel=2,
    )
    inputs = write(tmp_path, ["the words\nof a text", "the text", "a  text" * 1000])
    with caplog.at_level("WARNING"):
        (manifest,) = preprocess(options(inputs=inputs, tokenizer=str(tmp_path / "lossy.model")))
    example = r"'the words\nof a text' comes back as 'the words of a text'"
    record = manifest.read.round_trip
    assert (record.documents, record.changed, record.example) == (3, 2, example)
    assert caplog.messages == [
        "the tokenizer does not keep the text: 2 of 3 sampled documents come back changed; in the "
        f"first of them, {example}"
    ]


def test_merged_shards_have_the_sums(options: MakeOptions, tmp_path: Path, byte_tokenizer: str):
    texts = [f"{text} {i} " + "x" * 2000 for i in range(400) for text in TEXTS]
    inputs = write(tmp_path, texts)
    (whole,) = preprocess(options("one", inputs=inputs, tokenizer=byte_tokenizer))
    for i in range(2):
        preprocess(options(inputs=inputs, tokenizer=byte_tokenizer, shard=ShardIndex(i, 2)))
    shards = [str(tmp_path / f"out.shard-{i}-of-2") for i in range(2)]
    (merged,) = merge(shards, str(tmp_path / "merged"))
    assert merged.read == whole.read
    assert merged.read.special_tokens == {"</s>": 800, "<|eot|>": 400}


def test_the_sample_is_dense_at_the_start_and_sparse_after_it():
    assert [i for i in range(100) if is_sampled(i)] == [*range(8), 8, 16, 32, 64]
