"""The workspace: whose it is, when it is replaced, who may write to it."""

import fcntl
from pathlib import Path

import pytest

from armd_scale.data.preprocess.documents import ReaderOptions
from armd_scale.data.preprocess.pipeline import preprocess
from armd_scale.errors import CorpusError, ShardError, TokenizerError
from tests.support.corpus import SPLIT, MakeOptions


def test_unfinished_work_of_another_command_is_not_continued(
    options: MakeOptions, corpus: Path, tmp_path: Path
):
    inputs = (f"{corpus}/b.parquet", f"{corpus}/c.jsonl")
    with pytest.raises(CorpusError, match="fix it"):
        preprocess(options(inputs=inputs, on_error="fail"))
    parts = tmp_path / "out.work"
    with pytest.raises(ShardError, match=r"out\.work must hold unfinished work of this same"):
        preprocess(options(inputs=inputs, split=SPLIT))
    assert parts.exists()
    preprocess(options(inputs=inputs, split=SPLIT, overwrite=True))
    assert not parts.exists()


def test_workspace_without_tokens_is_replaced_silently(options: MakeOptions, tmp_path: Path):
    (tmp_path / "x.jsonl").write_text('{"body": "some text"}\n')
    inputs = (str(tmp_path / "x.jsonl"),)
    with pytest.raises(CorpusError, match="contains none"):
        preprocess(options(inputs=inputs))
    with pytest.raises(TokenizerError, match=r"it contains no text that can be read, so check"):
        preprocess(options(inputs=inputs, tokenizer="train:sentencepiece:300"))
    (manifest,) = preprocess(options(inputs=inputs, reader=ReaderOptions(text_key="body")))
    assert manifest.documents == 1


def test_a_folder_of_the_user_is_never_deleted(options: MakeOptions, tmp_path: Path):
    (tmp_path / "out.work").mkdir()
    (tmp_path / "out.work" / "mine.txt").write_text("precious")
    with pytest.raises(ShardError, match=r"out\.work must hold"):
        preprocess(options(overwrite=True))
    assert (tmp_path / "out.work" / "mine.txt").exists()


def test_only_one_process_may_write_a_prefix(options: MakeOptions, tmp_path: Path):
    with pytest.raises(CorpusError):
        preprocess(options(on_error="fail"))
    with (tmp_path / "out.work" / "key").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for changes in ({}, {"split": SPLIT}, {"split": SPLIT, "overwrite": True}):
            with pytest.raises(ShardError, match="out is being written by another process"):
                preprocess(options(**changes))
