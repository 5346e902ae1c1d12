"""Datasets of the Hugging Face hub."""

from pathlib import Path

from armd_scale.data.preprocess.documents import ReaderOptions, SkippedDocument
from armd_scale.data.preprocess.hub import read_hub
from tests.support.corpus import TEXTS, json_lines


def test_hub_rows_are_read_through_the_datasets_library(tmp_path: Path):
    (tmp_path / "rows.jsonl").write_bytes(json_lines(TEXTS))
    items = list(read_hub(str(tmp_path), ReaderOptions()))
    assert [item.text for item in items if not isinstance(item, SkippedDocument)] == TEXTS
    (bad, *_) = read_hub(str(tmp_path), ReaderOptions(text_key="body"))
    assert str(bad) == f"{tmp_path} shard 0 row 0: no key 'body' (its keys: text)"
