"""A document over --max-document-bytes is encoded in chunks and stays one document."""

from itertools import pairwise
from pathlib import Path

import pytest
from megatron.core.datasets.indexed_dataset import IndexedDataset

from armd_scale.data.indexed_reader import open_shards, verify
from armd_scale.data.manifest import Manifest, ShardIndex
from armd_scale.data.preprocess.documents import ReaderOptions
from armd_scale.data.preprocess.merge import merge
from armd_scale.data.preprocess.pipeline import preprocess
from armd_scale.data.tokenizer import load_tokenizer
from tests.support.corpus import MakeOptions, document_texts, json_lines, result_files

READER = ReaderOptions(max_document_bytes=2048)
HALVES = ("0.5", "0.5")


def long_text(name: str, num_lines: int = 1000) -> str:
    return "".join(f"line {i} of {name}\n" for i in range(num_lines))


def read_documents(prefix: Path, tokenizer: str = "out.tokenizer") -> list[str]:
    """The texts of the documents by our reader's bounds, after a check that each ends with EOS."""
    shards = open_shards(prefix)
    decoder = load_tokenizer(prefix.with_name(tokenizer))
    bounds = [*shards.document_starts.tolist(), shards.num_tokens]
    documents = [shards.read(a, b - a).tolist() for a, b in pairwise(bounds)]
    assert all(ids.index(decoder.eod) == len(ids) - 1 for ids in documents)
    return [decoder.decode(ids) for ids in documents]


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_a_long_document_is_one_document(options: MakeOptions, tmp_path: Path, suffix: str):
    text = long_text("the book")
    path = tmp_path / f"long{suffix}"
    path.write_bytes(text.encode() if suffix == ".txt" else json_lines([text]))
    (manifest,) = preprocess(options(inputs=(str(path),), reader=READER))
    assert (manifest.chunked_documents, manifest.documents) == (1, 1)
    assert read_documents(tmp_path / "out") == document_texts(tmp_path / "out") == [text]
    verify(tmp_path / "out")


def test_every_chunk_of_a_document_is_in_one_split(options: MakeOptions, tmp_path: Path):
    texts = [long_text(f"book {i}") for i in range(12)]
    (tmp_path / "x.jsonl").write_bytes(json_lines(texts))
    manifests = preprocess(
        options(inputs=(str(tmp_path / "x.jsonl"),), reader=READER, split=HALVES)
    )
    found = [read_documents(tmp_path / f"out_{side}") for side in ("train", "valid")]
    assert all(found)
    assert sorted(found[0] + found[1]) == sorted(texts)
    assert sum(manifest.chunked_documents for manifest in manifests) == 12


def test_documents_of_one_chunk_keep_the_split_of_their_text(options: MakeOptions, tmp_path: Path):
    texts = [f"text {i}" for i in range(20)]
    (tmp_path / "x.jsonl").write_bytes(json_lines(texts))
    preprocess(options(inputs=(str(tmp_path / "x.jsonl"),), split=HALVES))
    valid = [1, 3, 4, 6, 7, 8, 9, 10, 12, 13, 15, 16, 18, 19]
    assert read_documents(tmp_path / "out_valid") == [texts[i] for i in valid]


def preprocess_large(options: MakeOptions, folder: Path, **changes: object) -> list[Manifest]:
    """Text files of several work units each, between small ones."""
    if not (folder / "in").exists():
        (folder / "in").mkdir()
        for name in "abcd":
            (folder / "in" / f"{name}.txt").write_text(long_text(name, num_lines=150_000))
            (folder / "in" / f"{name}-small.txt").write_text(f"small {name}")
    return preprocess(options(**{"inputs": (str(folder / "in"),), "split": HALVES, **changes}))


def test_a_document_over_several_units_is_one_document(options: MakeOptions, tmp_path: Path):
    manifests = preprocess_large(options, tmp_path)
    assert sum(manifest.documents for manifest in manifests) == 8
    assert sum(manifest.chunked_documents for manifest in manifests) == 4
    found = [read_documents(tmp_path / f"out_{side}") for side in ("train", "valid")]
    expected = [path.read_text() for path in sorted((tmp_path / "in").iterdir())]
    assert sorted(found[0] + found[1]) == sorted(expected)
    assert all(len(max(side, key=len)) > 1 << 20 for side in found)
    num_sequences = sum(len(IndexedDataset(f"{tmp_path}/out_{s}")) for s in ("train", "valid"))
    assert num_sequences > 8


def test_shards_end_between_documents_and_merge_to_the_same(options: MakeOptions, tmp_path: Path):
    preprocess_large(options, tmp_path, output=str(tmp_path / "one" / "out"))
    for i in range(3):
        output = str(tmp_path / "many" / "out")
        preprocess_large(options, tmp_path, output=output, shard=ShardIndex(i, 3))
    shards = [str(tmp_path / f"many/out.shard-{i}-of-3") for i in range(3)]
    (tmp_path / "merged").mkdir()
    merge(shards, str(tmp_path / "merged/out"))
    assert result_files(tmp_path / "merged") == result_files(tmp_path / "one")
