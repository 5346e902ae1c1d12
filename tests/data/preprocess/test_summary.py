"""The closing summary, and the share of documents that may be skipped."""

import gzip
from dataclasses import replace
from pathlib import Path

import pytest

from armd_scale.data.manifest import ShardIndex
from armd_scale.data.preprocess.documents import ReaderOptions
from armd_scale.data.preprocess.pipeline import preprocess
from armd_scale.errors import CorpusError
from tests.support.corpus import SPLIT, MakeOptions, json_lines


@pytest.fixture
def half_bad(tmp_path: Path) -> Path:
    """Three documents, two lines that are not JSON and one without text, beside an ignored file."""
    (tmp_path / "in").mkdir()
    lines = json_lines(["one", "two", "three"]) + b'{"text": null}\nbroken\nbroken too\n'
    (tmp_path / "in" / "a.jsonl").write_bytes(lines)
    (tmp_path / "in" / "a.bin").write_bytes(b"\xff")
    return tmp_path / "in"


@pytest.mark.parametrize("split", [(), SPLIT], ids=["whole", "split"])
def test_the_summary_says_what_was_read_skipped_and_ignored(
    options: MakeOptions,
    half_bad: Path,
    split: tuple[str, ...],
    caplog: pytest.LogCaptureFixture,
):
    run = options(inputs=(str(half_bad),), split=split, max_skipped=0.5)
    summary = (
        "read 3 documents (11 bytes of text); skipped 3 documents (2 invalid JSON, 1 null); "
        "ignored 1 files or folders (1 .bin)"
    )
    for _ in range(2):  # the second time it is complete already
        caplog.clear()
        with caplog.at_level("INFO"):
            manifests = preprocess(run)
        assert caplog.messages[-1] == summary
        for manifest in manifests:
            assert (manifest.read.documents, manifest.read.text_bytes) == (3, 11)
            assert manifest.skipped.count == 3
            assert manifest.skipped.reasons == {"invalid JSON": 2, "null": 1}


def test_more_skipped_documents_than_allowed_end_the_run(
    options: MakeOptions, half_bad: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    run = options(inputs=(str(half_bad),))
    for on_error in ("skip-documents", "skip"):
        with pytest.raises(CorpusError) as refusal:
            preprocess(replace(run, on_error=on_error))
        assert str(refusal.value) == (
            "at most 0.01 of the documents may be skipped, but 3 of 6 were (2 of them: invalid "
            f"JSON, such as {half_bad}/a.jsonl:5: not JSON (column 1: Expecting value)): fix the "
            "input or the options that describe it, or pass a larger --max-skipped to do without "
            "these documents"
        )
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out.work"]
    with caplog.at_level("INFO"):
        (manifest,) = preprocess(replace(run, max_skipped=0.5))
    assert "encoding" not in caplog.text  # the unit was finished before
    assert manifest.documents == 3
    with pytest.raises(CorpusError, match="but 3 of 6 were"):
        preprocess(run)  # of the complete result


def test_each_shard_is_judged_by_its_own_documents(options: MakeOptions, tmp_path: Path):
    good, bad = json_lines(["x" * 2000] * 1000), b"broken\n" * 200
    (tmp_path / "x.jsonl").write_bytes(good + bad)
    inputs = (str(tmp_path / "x.jsonl"),)
    preprocess(options(inputs=inputs, shard=ShardIndex(0, 2)))
    with pytest.raises(CorpusError, match=r"but 200 of \d+ were"):
        preprocess(options(inputs=inputs, shard=ShardIndex(1, 2), max_skipped=0.17))


def test_the_rest_of_a_file_counts_as_one_document(options: MakeOptions, tmp_path: Path):
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}\n' * 1000)[:-9])
    run = options(inputs=(str(tmp_path / "x.jsonl.gz"),), on_error="skip", max_skipped=0.0)
    with pytest.raises(CorpusError, match=r"1 of \d+ were \(1 of them: unreadable file, such as"):
        preprocess(run)
    (manifest,) = preprocess(replace(run, max_skipped=0.01))
    assert manifest.skipped.reasons == {"unreadable file": 1}


def test_empty_documents_do_not_count(options: MakeOptions, tmp_path: Path):
    (tmp_path / "x.jsonl").write_bytes(json_lines(["", "", "text"]))
    run = options(inputs=(str(tmp_path / "x.jsonl"),), append_eod=False, max_skipped=0.0)
    (manifest,) = preprocess(run)
    assert manifest.skipped.reasons == {"empty": 2}


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("x.txt", b"\xff", "not UTF-8"),
        ("x.jsonl", b'{"body": "x"}', "no such key"),
        ("x.jsonl", b'{"text": ["x"]}', "not a string"),
        ("x.jsonl", b'"x"', "not a JSON object"),
        ("x.jsonl", b'{"text": "\\ud800"}', "invalid character"),
        ("x.csv", b"text\na,b\n", "invalid CSV"),
    ],
)
def test_every_reason_has_a_class(
    options: MakeOptions, tmp_path: Path, name: str, content: bytes, reason: str
):
    (tmp_path / name).write_bytes(content)
    (tmp_path / "good.jsonl").write_bytes(json_lines(["good"]))
    inputs = (str(tmp_path / name), str(tmp_path / "good.jsonl"))
    (manifest,) = preprocess(
        options(inputs=inputs, max_skipped=1.0, reader=ReaderOptions(max_document_bytes=2048))
    )
    assert manifest.skipped.reasons == {reason: 1}
    assert manifest.skipped.reason_examples[reason].startswith(str(tmp_path / name))


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_an_impossible_share_is_refused(options: MakeOptions, share: float):
    with pytest.raises(CorpusError, match="--max-skipped must be a share from 0 to 1"):
        preprocess(options(max_skipped=share))
