"""Data that fits a checkpoint, and every way in which it does not."""

from pathlib import Path

import pytest

from armd_scale.checkpoint.load import Checkpoint
from armd_scale.data.tokenizer import load_tokenizer, train_sentencepiece
from armd_scale.errors import CheckpointError, ShardError, TokenizerError
from armd_scale.eval.held_out import open_held_out
from tests.support.held_out import recipe_of, write_documents, write_manifest

TEXTS = ["the quick brown fox jumps over the lazy dog\n" * 20]


@pytest.fixture
def prefix(tmp_path):
    return write_documents(tmp_path / "valid")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A folder with a tokenizer in it, and its fingerprint."""
    folder = tmp_path_factory.mktemp("tokenizer")
    train_sentencepiece(TEXTS, 290).save(folder)
    return folder, load_tokenizer(folder).fingerprint


def checkpoint(tmp_path: Path, **changes: object) -> Checkpoint:
    return Checkpoint(folder=tmp_path / "step", recipe=recipe_of(**changes), state={})


def with_tokenizer(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    checkpoint.folder.mkdir()
    (checkpoint.folder / "tokenizer").symlink_to(folder)
    return checkpoint


def test_windows_as_in_training(tmp_path, prefix):
    windows = open_held_out(prefix, checkpoint(tmp_path))
    assert (windows.seq_length, windows.num_windows) == (16, 10)
    assert windows.lengths(1) == (17,)
    packed = open_held_out(prefix, checkpoint(tmp_path, data__packing="documents"), seq_length=8)
    assert packed.seq_length == 8
    assert packed.lengths(3) == (6, 3)


def test_data_of_the_same_tokenizer_or_of_unknown_origin(tmp_path, prefix, tokenizer):
    folder, fingerprint = tokenizer
    known = with_tokenizer(checkpoint(tmp_path), folder)
    assert open_held_out(prefix, known).num_windows == 10
    write_manifest(prefix, tokens=175, text_bytes=1, fingerprint=fingerprint)
    assert open_held_out(prefix, known).num_windows == 10


def test_data_of_another_tokenizer(tmp_path, prefix, tokenizer):
    known = with_tokenizer(checkpoint(tmp_path), tokenizer[0])
    write_manifest(prefix, tokens=175, text_bytes=1, fingerprint="0123456789abcdef")
    with pytest.raises(TokenizerError, match=r"fingerprint is 0123456789ab against .*--tokenizer"):
        open_held_out(prefix, known)


def test_data_of_a_larger_vocabulary(tmp_path, prefix):
    write_manifest(prefix, tokens=175, text_bytes=1, vocab_size=102)
    with pytest.raises(TokenizerError, match=r"has 102 tokens where .* knows 101: preprocess"):
        open_held_out(prefix, checkpoint(tmp_path))


def test_tokens_that_the_model_does_not_know_without_a_manifest(tmp_path, prefix):
    windows = open_held_out(prefix, checkpoint(tmp_path, model__vocab_size=50))
    with pytest.raises(ShardError, match="below the model's vocabulary of 50"):
        windows.window(0)


def test_windows_longer_than_the_positions(tmp_path, prefix):
    table = checkpoint(
        tmp_path, model__max_positions=40, model__position_embedding="learned_absolute"
    )
    assert open_held_out(prefix, table, seq_length=39)
    with pytest.raises(CheckpointError, match=r"--seq-length 40 plus .* with --seq-length 39 or"):
        open_held_out(prefix, table, seq_length=40)


def test_rotary_positions_have_no_end(tmp_path, prefix):
    assert open_held_out(prefix, checkpoint(tmp_path), seq_length=174).num_windows == 1


def test_an_end_that_the_recipe_names_holds(tmp_path, prefix):
    with pytest.raises(CheckpointError, match="--seq-length 39 or less"):
        open_held_out(prefix, checkpoint(tmp_path, model__max_positions=40), seq_length=40)


def test_windows_longer_than_the_data(tmp_path, prefix):
    model = checkpoint(tmp_path, model__max_positions=1000)
    assert open_held_out(prefix, model, seq_length=174).num_windows == 1
    with pytest.raises(ShardError, match=r"at least --seq-length \+ 1 = 176 tokens, got 175"):
        open_held_out(prefix, model, seq_length=175)


def test_missing_data(tmp_path):
    with pytest.raises(ShardError, match="does not exist"):
        open_held_out(str(tmp_path / "none"), checkpoint(tmp_path))
