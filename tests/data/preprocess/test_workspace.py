"""The workspace: whose it is, when it is replaced, who may write to it."""

import fcntl
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from armd_scale.data.preprocess.documents import ReaderOptions
from armd_scale.data.preprocess.pipeline import preprocess
from armd_scale.errors import CorpusError, ShardError, TokenizerError
from tests.support.corpus import SPLIT, MakeOptions, result_files


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


def test_a_run_that_finished_nothing_leaves_nothing(options: MakeOptions, tmp_path: Path):
    with pytest.raises(CorpusError, match=r"a\.jsonl:101: not JSON"):
        preprocess(options("new/folders/out", on_error="fail"))
    assert not list(tmp_path.iterdir())
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "mine.txt").write_text("mine")
    with pytest.raises(CorpusError, match=r"a\.jsonl:101: not JSON"):
        preprocess(options("new/folders/out", on_error="fail"))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    "changes", [{}, {"tokenizer": "train:sentencepiece:290"}, {"split": SPLIT}]
)
def test_a_fixed_input_continues_without_overwrite(
    options: MakeOptions,
    corpus: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    changes: dict[str, object],
):
    shutil.copytree(corpus, tmp_path / "in")
    inputs = (f"{tmp_path}/in/b.parquet", f"{tmp_path}/in/c.jsonl", f"{tmp_path}/in/d0.txt")
    (tmp_path / "result").mkdir()
    run = options("result/out", inputs=inputs, on_error="fail", **changes)
    with pytest.raises(CorpusError, match=r"c\.jsonl:71: no key 'text'"):
        preprocess(run)
    fixed = (tmp_path / "in" / "c.jsonl").read_text().replace('"body": 1', '"text": "fixed"')
    (tmp_path / "in" / "c.jsonl").write_text(fixed)
    with caplog.at_level("INFO"):
        preprocess(run)
    # A tokenizer is trained again on the fixed corpus, so that nothing of the old work remains.
    assert ("continuing: 2 of 12 units are left" in caplog.text) == ("tokenizer" not in changes)
    (tmp_path / "fresh").mkdir()
    preprocess(options("fresh/out", inputs=inputs, on_error="fail", **changes))
    assert result_files(tmp_path / "result") == result_files(tmp_path / "fresh")


def test_a_trained_tokenizer_is_kept_for_the_same_inputs(
    options: MakeOptions, corpus: Path, caplog: pytest.LogCaptureFixture
):
    inputs = (f"{corpus}/c.jsonl",)
    run = options(inputs=inputs, tokenizer="train:sentencepiece:290", on_error="fail")
    with pytest.raises(CorpusError, match="no key"):
        preprocess(run)
    caplog.clear()
    with caplog.at_level("INFO"):
        preprocess(replace(run, on_error="skip", max_skipped=0.1))
    assert "training" not in caplog.text


def test_only_one_process_may_write_a_prefix(options: MakeOptions, corpus: Path, tmp_path: Path):
    inputs = (f"{corpus}/d0.txt", f"{corpus}/a.jsonl")
    options = partial(options, inputs=inputs)
    with pytest.raises(CorpusError):
        preprocess(options(on_error="fail"))
    with (tmp_path / "out.work" / "key").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for changes in ({}, {"split": SPLIT}, {"split": SPLIT, "overwrite": True}):
            with pytest.raises(ShardError, match="out is being written by another process"):
                preprocess(options(**changes))
