"""Documents: long and empty ones."""

from pathlib import Path

from tests.support.corpus import json_lines, read


def test_long_json_documents_are_split_too(tmp_path: Path):
    (tmp_path / "x.jsonl").write_bytes(json_lines(["é" * 5000, "short"]))
    texts, _ = read(tmp_path / "x.jsonl", max_document_bytes=4096)
    assert "".join(texts) == "é" * 5000 + "short"
    assert [len(text) for text in texts] == [2048, 2048, 904, 5]


def test_empty_texts_are_documents_only_with_an_end_token(tmp_path: Path):
    (tmp_path / "empty.txt").write_text("")
    assert read(tmp_path / "empty.txt") == ([""], [])
    texts, (bad,) = read(tmp_path / "empty.txt", keep_empty=False)
    assert not texts
    assert "is empty, and there is no end token" in bad
