"""The whole pipeline: what a run writes, counts, keeps and continues."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

from armd_scale.data.indexed_reader import open_shards, verify
from armd_scale.data.manifest import Manifest, existing_splits
from armd_scale.data.preprocess.pipeline import preprocess
from armd_scale.data.tokenizer import load_tokenizer
from armd_scale.errors import CorpusError, ShardError
from tests.support.corpus import SPLIT, TEXTS, MakeOptions, document_texts
from tests.support.hf_folders import write_byte_tokenizer


def test_result_holds_the_corpus_and_equals_the_files_of_megatron(
    options: MakeOptions, corpus: Path, tmp_path: Path
):
    (manifest,) = preprocess(options())
    assert manifest.documents == 400
    assert [document for document in document_texts(tmp_path / "out") if document] == [
        text for i in range(400) if (text := f"text number {i} of the corpus\n" * (i % 7))
    ]
    dataset = IndexedDataset(str(tmp_path / "out"))
    builder = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=np.uint16)
    for i in range(len(dataset)):
        document: Any = dataset[i]
        builder.add_document(document, [len(document)])
    builder.finalize(str(tmp_path / "theirs.idx"))
    for suffix in (".bin", ".idx"):
        ours, theirs = tmp_path / f"out{suffix}", tmp_path / f"theirs{suffix}"
        assert ours.read_bytes() == theirs.read_bytes()


def test_skipped_documents_are_counted_and_listed(options: MakeOptions, corpus: Path):
    (manifest,) = preprocess(options())
    assert manifest.skipped.count == 3
    assert manifest.skipped.examples == (
        f"{corpus}/a.jsonl:101: not JSON (column 1: Expecting value)",
        f"{corpus}/c.jsonl:71: no key 'text' (its keys: 'body')",
        f"{corpus}/e.txt:1: not UTF-8 (invalid start byte)",
    )


def test_on_error_fail_stops_at_the_first_invalid_document_without_a_result(
    options: MakeOptions, corpus: Path, tmp_path: Path
):
    with pytest.raises(CorpusError, match=r"a\.jsonl:101: not JSON .* fix it, or pass --on-error"):
        preprocess(options(on_error="fail"))
    assert not list(tmp_path.iterdir())


def test_splits_share_no_text_and_lose_no_document(options: MakeOptions, tmp_path: Path):
    manifests = preprocess(options(split=SPLIT))
    sides = [
        set(document_texts(tmp_path / f"out_{side}", tokenizer="out.tokenizer"))
        for side in ("train", "valid", "test")
    ]
    assert sum(manifest.documents for manifest in manifests) == 400
    assert sides[0].isdisjoint(sides[1] | sides[2])
    assert sides[1].isdisjoint(sides[2])
    assert all(len(side) > 20 for side in sides)
    assert len(sides[0]) > len(sides[1])


def test_documents_without_end_tokens(options: MakeOptions, tmp_path: Path):
    (with_end,) = preprocess(options("with"))
    (manifest,) = preprocess(options("without", append_eod=False))
    assert manifest.eod is None
    empty = with_end.documents - manifest.documents
    assert empty == 58
    assert manifest.skipped.count == with_end.skipped.count + empty
    # Those that are left out had a BOS besides.
    assert manifest.tokens == with_end.tokens - with_end.documents - empty


def test_existing_result_is_kept_and_a_different_one_is_not_overwritten(
    options: MakeOptions, corpus: Path, tmp_path: Path
):
    preprocess(options())
    before = (tmp_path / "out.bin").stat().st_mtime_ns
    preprocess(options())
    assert (tmp_path / "out.bin").stat().st_mtime_ns == before
    with pytest.raises(ShardError, match=r"out\.bin already exists and was made from other inputs"):
        preprocess(options(inputs=(str(corpus / "a.jsonl"),)))
    (manifest,) = preprocess(options(inputs=(str(corpus / "a.jsonl"),), overwrite=True))
    assert manifest.documents == 120
    verify(tmp_path / "out")


def test_failed_run_continues_with_on_error_skip(
    options: MakeOptions, corpus: Path, caplog: pytest.LogCaptureFixture
):
    inputs = tuple(f"{corpus}/{name}" for name in ("d0.txt", "b.parquet", "c.jsonl"))
    with pytest.raises(CorpusError, match=r"c\.jsonl:71: no key"):
        preprocess(options(inputs=inputs, on_error="fail"))
    with caplog.at_level("INFO"):
        (manifest,) = preprocess(options(inputs=inputs))
    assert "continuing: 1 of 12 units are left" in caplog.text
    assert manifest.skipped.count == 1
    with pytest.raises(ShardError, match="already exists and was made"):
        preprocess(options(inputs=inputs, on_error="fail"))


def test_a_file_that_cannot_be_read_ends_the_run_unless_the_user_said_skip(
    options: MakeOptions, corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    bad = tmp_path / "cut.jsonl.gz"
    bad.write_bytes(gzip.compress(b'{"text": "a"}\n' * 1000)[:-9])
    # A regular file that opens, but of which nothing can be read.
    (tmp_path / "memory.txt").symlink_to("/proc/self/mem")
    inputs = (f"{corpus}/a.jsonl", str(bad), str(tmp_path / "memory.txt"))
    for on_error in ("fail", "skip-documents"):
        with pytest.raises(CorpusError, match=r"(cut\.jsonl\.gz|a\.jsonl):\d+: .*--on-error skip"):
            preprocess(options(inputs=inputs, on_error=on_error))
    with caplog.at_level("WARNING"):
        (manifest,) = preprocess(options(inputs=inputs, on_error="skip"))
    assert manifest.documents > 120
    assert manifest.skipped.count == 3
    assert [file.split(": cannot be read")[0] for file in manifest.skipped.files] == [
        f"{bad}:1000",
        str(tmp_path / "memory.txt"),
    ]
    assert all(file in caplog.text for file in manifest.skipped.files)
    with pytest.raises(ShardError, match="already exists"):
        preprocess(options(inputs=inputs))


@pytest.mark.parametrize("kind", ["a file as folder", "a name that is too long", "a NUL character"])
def test_an_output_that_cannot_be_written_is_refused_at_once(
    options: MakeOptions, tmp_path: Path, kind: str
):
    (tmp_path / "file").write_text("mine")
    output = {
        "a file as folder": tmp_path / "file" / "out",
        # The shortest suffixes would still fit.
        "a name that is too long": tmp_path / "new" / ("x" * 248),
        "a NUL character": tmp_path / "a\0b",
    }[kind]
    with pytest.raises(ShardError, match=r"cannot be written .*choose another --output"):
        preprocess(options(output=str(output)))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_corpus_without_documents_is_an_error(options: MakeOptions, tmp_path: Path):
    (tmp_path / "x.jsonl").write_text('{"body": "x"}\n')
    with pytest.raises(
        CorpusError,
        match=r"contains none; 1 were skipped, the first: .*x\.jsonl:1: no key 'text'.*--text-key",
    ):
        preprocess(options(inputs=(str(tmp_path / "x.jsonl"),)))
    assert [path.name for path in tmp_path.iterdir()] == ["x.jsonl"]


def test_a_split_without_documents_is_reported(
    options: MakeOptions, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "x.txt").write_text("the only document")
    manifests: list[Manifest] = preprocess(
        options(inputs=(str(tmp_path / "x.txt"),), split=("0.999999", "0.000001"))
    )
    assert [manifest.documents for manifest in manifests] == [1, 0]
    assert set(existing_splits(str(tmp_path / "out"))) == {"train", "valid"}
    verify(tmp_path / "out_valid")
    with pytest.raises(ShardError, match="contains no tokens"):
        open_shards(tmp_path / "out_valid")


@pytest.mark.parametrize("prepend_bos", [None, True, False])
@pytest.mark.parametrize("kind", ["trained", "hf"])
def test_documents_start_as_texts_of_the_tokenizer_do(
    options: MakeOptions, tmp_path: Path, kind: str, prepend_bos: bool | None
):
    """By default with BOS if the tokenizer adds it; the choice is saved with the tokenizer."""
    changes: dict[str, object] = {"prepend_bos": prepend_bos}
    if kind == "trained":
        changes["tokenizer"] = "train:sentencepiece:300"
    else:
        (tmp_path / "hf").mkdir()
        write_byte_tokenizer(tmp_path / "hf", TEXTS, adds_bos=False)
        changes["tokenizer"] = str(tmp_path / "hf")
    (manifest,) = preprocess(options(f"{kind}{prepend_bos}", **changes))
    prefix = tmp_path / f"{kind}{prepend_bos}"
    tokenizer = load_tokenizer(manifest.tokenizer_folder(prefix))
    assert tokenizer.bos is not None
    starts = prepend_bos or (prepend_bos is None and kind == "trained")
    expected = (tokenizer.bos,) if starts else ()
    assert manifest.prefix_ids == tokenizer.prefix_ids == expected
    dataset = IndexedDataset(str(prefix))
    for index in range(len(dataset)):
        document: Any = dataset[index]
        assert (int(document[0]) == tokenizer.bos) is starts
        assert document[-1] == tokenizer.eod
        assert tokenizer.bos not in document[1:]
