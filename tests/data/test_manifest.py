"""The manifest: what is saved is loaded again, under the keys of format version 1."""

import json
from pathlib import Path

from armd_scale.data.manifest import (
    Manifest,
    ReadRecord,
    RoundTrip,
    ShardIndex,
    Skipped,
    SourceRecord,
    SplitRecord,
    TokenizerRecord,
    load_manifest,
    manifest_path,
)
from tests.support.eval_data import write_manifest


def test_a_saved_manifest_is_loaded_unchanged(tmp_path: Path) -> None:
    manifest = Manifest(
        documents=3,
        tokens=40,
        text_bytes=100,
        chunked_documents=1,
        vocab_size=300,
        eod=2,
        dtype="uint16",
        tokenizer=TokenizerRecord("sentencepiece", "f00d", "out.tokenizer"),
        sha256={"bin": "a", "idx": "b"},
        sources=(SourceRecord("a.txt", 100),),
        skipped=Skipped(1, ("a.txt:1: not UTF-8",), reasons={"not UTF-8": 1}),
        ignored={".pyc": 2},
        split=SplitRecord("valid", ("0.9", "0.1")),
        shard=ShardIndex(1, 4),
        plan="digest",
        read=ReadRecord(3, 100, {"</s>": 2}, RoundTrip(3, 1, "'a' comes back as 'b'")),
        special_tokens="text",
    )
    prefix = tmp_path / "out"
    manifest.save(manifest_path(prefix))
    assert load_manifest(prefix) == manifest
    saved = json.loads(manifest_path(prefix).read_text())
    assert saved["version"] == 1
    assert saved["split"] == {"side": "valid", "fractions": ["0.9", "0.1"]}
    assert saved["shard"] == {"index": 1, "count": 4}


def test_a_manifest_of_an_earlier_version_is_loaded(tmp_path: Path) -> None:
    prefix = str(tmp_path / "out")
    write_manifest(prefix, tokens=9, text_bytes=9)
    mapping = json.loads(manifest_path(prefix).read_text())
    mapping["cut_documents"] = 7
    mapping["skipped"] = {"count": 1, "examples": ["a.txt:1: not UTF-8"]}
    for key in ("chunked_documents", "manifest_sha256", "read", "special_tokens"):
        del mapping[key]
    manifest_path(prefix).write_text(json.dumps(mapping))
    manifest = load_manifest(prefix)
    assert manifest is not None
    assert (manifest.chunked_documents, manifest.special_tokens) == (7, "ids")
    assert (manifest.skipped.count, manifest.read) == (1, ReadRecord())


def test_a_dataset_without_a_manifest_has_none(tmp_path: Path) -> None:
    assert load_manifest(tmp_path / "out") is None
