"""Data to score: data that fits a checkpoint, and every way in which it does not."""

from pathlib import Path
from typing import Any

import pytest

from armd_scale.checkpoint.load import Checkpoint
from armd_scale.config.resolve import resolve
from armd_scale.data.tokenizer import load_tokenizer
from armd_scale.data.tokenizer_training import train_sentencepiece
from armd_scale.errors import ArmdError, CheckpointError, ShardError, TokenizerError
from armd_scale.eval.data import (
    check_max_positions,
    open_eval_shards,
    open_eval_text_file,
    open_windows,
    require_tokenizer,
)
from tests.support.eval_data import make_recipe, write_documents, write_manifest

TEXTS = ["the quick brown fox jumps over the lazy dog\n" * 20]


@pytest.fixture
def prefix(tmp_path):
    return write_documents(tmp_path / "valid")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A folder with a tokenizer, and its fingerprint."""
    folder = tmp_path_factory.mktemp("tokenizer")
    train_sentencepiece(TEXTS, 290).save(folder)
    return folder, load_tokenizer(folder).fingerprint


def make_checkpoint(tmp_path: Path, **changes: Any) -> Checkpoint:
    return Checkpoint(folder=tmp_path / "step", recipe=resolve(make_recipe(**changes)), state={})


def with_tokenizer(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    checkpoint.folder.mkdir()
    (checkpoint.folder / "tokenizer").symlink_to(folder)
    return checkpoint


def test_windows_are_packed_as_in_training(tmp_path, prefix):
    windows = open_windows(prefix, make_checkpoint(tmp_path))
    assert (windows.seq_length, windows.num_windows) == (16, 10)
    assert windows.lengths(1) == (17,)
    documents = make_checkpoint(tmp_path, data__packing="documents")
    packed = open_windows(prefix, documents, seq_length=8)
    assert packed.seq_length == 8
    assert packed.lengths(3) == (6, 3)


def test_shards_are_read_with_the_bytes_per_token_of_their_manifest(tmp_path, prefix):
    checkpoint = make_checkpoint(tmp_path)
    text = open_eval_shards(prefix, checkpoint, seq_length=None, stride=None)
    assert text.bytes_per_token is None
    write_manifest(prefix, tokens=175, text_bytes=700)
    text = open_eval_shards(prefix, checkpoint, seq_length=None, stride=4)
    assert text.bytes_per_token == 4
    assert text.num_words is None
    # 175 tokens: the first window takes 17, and 158 more need 40 steps of 4.
    assert text.windows.num_windows == 41


def test_a_text_file_is_one_document_with_its_bytes_and_words(tmp_path, tokenizer):
    checkpoint = with_tokenizer(make_checkpoint(tmp_path, model__vocab_size=300), tokenizer[0])
    path = tmp_path / "text"
    path.write_text("the <unk> dog\n")
    text = open_eval_text_file(path, checkpoint, detokenizer="ptb", seq_length=None, stride=None)
    (tokens,) = load_tokenizer(tokenizer[0]).encode_batch(["the ? dog\n"])
    assert text.windows.num_windows == 1
    assert text.windows.window(0)[1:].tolist() == tokens.tolist()
    # Bytes and words of the file as it is, before detokenization.
    assert text.bytes_per_token == pytest.approx(14 / len(tokens))
    assert text.num_words == 3


def test_a_text_file_that_cannot_be_used_is_refused(tmp_path, tokenizer):
    checkpoint = with_tokenizer(make_checkpoint(tmp_path, model__vocab_size=300), tokenizer[0])

    def read(name, detokenizer="none"):
        open_eval_text_file(
            tmp_path / name, checkpoint, detokenizer=detokenizer, seq_length=None, stride=None
        )

    with pytest.raises(ArmdError, match=r"--text must be a UTF-8 file, but .*none cannot be read"):
        read("none")
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    with pytest.raises(ArmdError, match=r"--text must be a UTF-8 file, but .*latin cannot be read"):
        read("latin")
    (tmp_path / "empty").write_text("")
    with pytest.raises(ArmdError, match=r"--text must contain some text, but .*empty is empty"):
        read("empty")
    with pytest.raises(ArmdError, match="--detokenizer must be one of"):
        read("empty", "wiki")


def test_data_of_the_same_tokenizer_or_of_unknown_origin_is_accepted(tmp_path, prefix, tokenizer):
    folder, fingerprint = tokenizer
    checkpoint = with_tokenizer(make_checkpoint(tmp_path), folder)
    assert open_windows(prefix, checkpoint).num_windows == 10
    write_manifest(prefix, tokens=175, text_bytes=1, fingerprint=fingerprint)
    assert open_windows(prefix, checkpoint).num_windows == 10


def test_data_of_another_tokenizer_is_refused(tmp_path, prefix, tokenizer):
    checkpoint = with_tokenizer(make_checkpoint(tmp_path), tokenizer[0])
    write_manifest(prefix, tokens=175, text_bytes=1, fingerprint="0123456789abcdef")
    with pytest.raises(
        TokenizerError, match=r"fingerprint is 0123456789ab instead of .*--tokenizer"
    ):
        open_windows(prefix, checkpoint)


def test_data_of_a_larger_vocabulary_is_refused(tmp_path, prefix):
    write_manifest(prefix, tokens=175, text_bytes=1, vocab_size=102)
    with pytest.raises(TokenizerError, match=r"has 102 tokens and .* has 101: preprocess"):
        open_windows(prefix, make_checkpoint(tmp_path))


def test_without_a_manifest_tokens_outside_the_vocabulary_are_found_when_read(tmp_path, prefix):
    windows = open_windows(prefix, make_checkpoint(tmp_path, model__vocab_size=50))
    with pytest.raises(ShardError, match="below the model's vocabulary of 50"):
        windows.window(0)


def test_windows_longer_than_a_position_table_are_refused(tmp_path, prefix):
    checkpoint = make_checkpoint(
        tmp_path, model__max_positions=40, model__position_embedding="learned_absolute"
    )
    assert open_windows(prefix, checkpoint, seq_length=39)
    with pytest.raises(CheckpointError, match=r"--seq-length 40 plus .* use --seq-length 39 or"):
        open_windows(prefix, checkpoint, seq_length=40)
    with pytest.raises(CheckpointError, match=r"max_length=40 plus .* use max_length=39 or"):
        check_max_positions(40, checkpoint, flag="max_length=")


def test_rotary_positions_are_unlimited(tmp_path, prefix):
    checkpoint = make_checkpoint(tmp_path)
    assert open_windows(prefix, checkpoint, seq_length=174).num_windows == 1


def test_a_maximum_in_the_recipe_limits_rotary_positions_too(tmp_path, prefix):
    checkpoint = make_checkpoint(tmp_path, model__max_positions=40)
    with pytest.raises(CheckpointError, match="--seq-length 39 or less"):
        open_windows(prefix, checkpoint, seq_length=40)


def test_data_shorter_than_a_window_is_refused(tmp_path, prefix):
    checkpoint = make_checkpoint(tmp_path, model__max_positions=1000)
    assert open_windows(prefix, checkpoint, seq_length=174).num_windows == 1
    with pytest.raises(ShardError, match=r"at least --seq-length \+ 1 = 176 tokens \(got 175"):
        open_windows(prefix, checkpoint, seq_length=175)


def test_missing_data_is_refused(tmp_path):
    with pytest.raises(ShardError, match="does not exist"):
        open_windows(str(tmp_path / "none"), make_checkpoint(tmp_path))


def test_a_checkpoint_without_tokenizer_is_refused(tmp_path):
    with pytest.raises(TokenizerError, match="text needs the tokenizer that the model was trained"):
        require_tokenizer(make_checkpoint(tmp_path))
