import fcntl
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

from armd_scale.data.indexed_reader import open_shards, verify
from armd_scale.data.manifest import Manifest, ShardIndex, existing_splits
from armd_scale.data.preprocess.documents import ReaderOptions
from armd_scale.data.preprocess.encode_unit import assign_split
from armd_scale.data.preprocess.merge import merge
from armd_scale.data.preprocess.options import PreprocessOptions, split_bounds
from armd_scale.data.preprocess.pipeline import preprocess
from armd_scale.data.tokenizer import load_tokenizer, train_sentencepiece
from armd_scale.errors import CorpusError, ShardError, TokenizerError

SPLIT = ("0.6", "0.2", "0.2")
Options = Callable[..., PreprocessOptions]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of several kinds, of 13 units of work, with 400 documents and three bad ones."""
    folder = tmp_path_factory.mktemp("corpus")
    texts = [f"text number {i} of the corpus\n" * (i % 7) for i in range(400)]
    lines = [json.dumps({"text": text}) for text in texts]
    (folder / "a.jsonl").write_text("\n".join([*lines[:100], "broken", *lines[100:120]]))
    pq.write_table(pa.table({"text": texts[120:320]}), folder / "b.parquet", row_group_size=20)
    (folder / "c.jsonl").write_text("\n".join([*lines[320:390], '{"body": 1}']))
    for i, text in enumerate(texts[390:]):
        (folder / f"d{i}.txt").write_text(text)
    (folder / "e.txt").write_bytes(b"\xff")
    train_sentencepiece(texts, 300).save(folder.parent / "tokenizer")
    return folder


@pytest.fixture
def options(corpus: Path, tmp_path: Path) -> Options:
    def make(name: str = "out", **changes: object) -> PreprocessOptions:
        arguments: dict[str, object] = {
            "inputs": (str(corpus),),
            "output": str(tmp_path / name),
            "tokenizer": str(corpus.parent / "tokenizer"),
            **changes,
        }
        return PreprocessOptions(**arguments)  # type: ignore[arg-type]

    return make


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a result, by name, with none left over from the work."""
    assert not list(folder.glob("*.parts"))
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def documents(prefix: Path) -> list[str]:
    tokenizer = load_tokenizer(f"{prefix}.tokenizer")
    dataset = IndexedDataset(str(prefix))
    return [tokenizer.decode(dataset[i].tolist()) for i in range(len(dataset))]


def test_pair_holds_the_corpus_and_equals_megatrons(options: Options, corpus: Path, tmp_path: Path):
    (manifest,) = preprocess(options())
    assert manifest.documents == 400
    assert [document for document in documents(tmp_path / "out") if document] == [
        text for i in range(400) if (text := f"text number {i} of the corpus\n" * (i % 7))
    ]
    dataset = IndexedDataset(str(tmp_path / "out"))
    builder = IndexedDatasetBuilder(str(tmp_path / "theirs.bin"), dtype=np.uint16)
    for i in range(len(dataset)):
        builder.add_document(dataset[i], [len(dataset[i])])
    builder.finalize(str(tmp_path / "theirs.idx"))
    for suffix in (".bin", ".idx"):
        ours, theirs = tmp_path / f"out{suffix}", tmp_path / f"theirs{suffix}"
        assert ours.read_bytes() == theirs.read_bytes()


def test_what_was_skipped_is_counted_and_named(options: Options, corpus: Path):
    (manifest,) = preprocess(options())
    assert manifest.skipped.count == 3
    assert manifest.skipped.examples == (
        f"{corpus}/a.jsonl:101: not JSON (column 1: Expecting value)",
        f"{corpus}/c.jsonl:71: no key 'text' (its keys: 'body')",
        f"{corpus}/e.txt:1: not UTF-8 (invalid start byte)",
    )


def test_refusing_stops_at_the_first_bad_document_and_leaves_no_result(
    options: Options, corpus: Path, tmp_path: Path
):
    with pytest.raises(CorpusError, match=r"a\.jsonl:101: not JSON .* mend it, or pass --on-error"):
        preprocess(options(on_error="refuse"))
    assert [path.name for path in tmp_path.iterdir()] == ["out.parts"]


@pytest.mark.parametrize("split", [(), SPLIT], ids=["whole", "split"])
@pytest.mark.parametrize("count", [1, 3, 20])
def test_merged_shards_equal_the_single_run(
    options: Options, tmp_path: Path, split: tuple[str, ...], count: int
):
    (tmp_path / "one").mkdir()
    preprocess(options("one/out", split=split))
    for index in range(count):
        preprocess(options("many/out", split=split, shard=ShardIndex(index, count)))
    shards = [str(tmp_path / f"many/out.shard-{i}-of-{count}") for i in reversed(range(count))]
    (tmp_path / "merged").mkdir()
    merge(shards, str(tmp_path / "merged/out"))
    assert contents(tmp_path / "merged") == contents(tmp_path / "one")


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_change_nothing(options: Options, tmp_path: Path, workers: int):
    preprocess(options("one/out", split=SPLIT))
    preprocess(options("many/out", split=SPLIT, workers=workers))
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


def test_split_sides_share_no_text_and_lose_none(options: Options, tmp_path: Path):
    manifests = preprocess(options(split=SPLIT))
    sides = [set(documents_of_side(tmp_path, side)) for side in ("train", "valid", "test")]
    assert sum(manifest.documents for manifest in manifests) == 400
    assert sides[0].isdisjoint(sides[1] | sides[2])
    assert sides[1].isdisjoint(sides[2])
    assert all(len(side) > 20 for side in sides)
    assert len(sides[0]) > len(sides[1])


def documents_of_side(folder: Path, side: str) -> list[str]:
    tokenizer = load_tokenizer(folder / "out.tokenizer")
    dataset = IndexedDataset(str(folder / f"out_{side}"))
    return [tokenizer.decode(dataset[i].tolist()) for i in range(len(dataset))]


def test_shares_of_a_split_come_out():
    bounds = split_bounds(("0.7", "0.2", "0.1"))
    sides = [assign_split(str(i).encode(), bounds) for i in range(20_000)]
    shares = np.bincount(sides) / len(sides)
    np.testing.assert_allclose(shares, [0.7, 0.2, 0.1], atol=0.01)


def test_vocabulary_trained_on_the_way_is_the_same_each_time(options: Options, tmp_path: Path):
    for name, workers in (("one/out", 1), ("two/out", 2)):
        preprocess(options(name, tokenizer="train:sentencepiece:310", workers=workers))
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert load_tokenizer(tmp_path / "one/out.tokenizer").vocab_size == 310


def test_long_documents_are_cut_and_counted(options: Options, tmp_path: Path):
    text = "".join(f"line {i}\n" for i in range(1000))
    (tmp_path / "long.txt").write_text(text)
    (manifest,) = preprocess(
        options(
            inputs=(str(tmp_path / "long.txt"),), reading=ReaderOptions(max_document_bytes=2048)
        )
    )
    assert (manifest.cut_documents, manifest.documents) == (1, 5)
    assert "".join(documents(tmp_path / "out")) == text


def test_documents_may_go_without_an_end_token(options: Options, tmp_path: Path):
    (with_end,) = preprocess(options("with"))
    (manifest,) = preprocess(options("without", append_eod=False))
    assert manifest.eod is None
    empty = with_end.documents - manifest.documents
    assert empty == 58
    assert manifest.skipped.count == with_end.skipped.count + empty
    assert manifest.tokens == with_end.tokens - with_end.documents


def test_finished_result_is_left_alone_and_another_is_not_overwritten(
    options: Options, corpus: Path, tmp_path: Path
):
    preprocess(options())
    before = (tmp_path / "out.bin").stat().st_mtime_ns
    preprocess(options())
    assert (tmp_path / "out.bin").stat().st_mtime_ns == before
    with pytest.raises(ShardError, match=r"out\.bin is there already, from other inputs"):
        preprocess(options(inputs=(str(corpus / "a.jsonl"),)))
    (manifest,) = preprocess(options(inputs=(str(corpus / "a.jsonl"),), overwrite=True))
    assert manifest.documents == 120
    verify(tmp_path / "out")


def test_unfinished_work_is_not_taken_for_that_of_another_command(
    options: Options, corpus: Path, tmp_path: Path
):
    inputs = (f"{corpus}/b.parquet", f"{corpus}/c.jsonl")
    with pytest.raises(CorpusError, match="mend it"):
        preprocess(options(inputs=inputs, on_error="refuse"))
    parts = tmp_path / "out.parts"
    with pytest.raises(ShardError, match=r"out\.parts must hold unfinished work of this very"):
        preprocess(options(inputs=inputs, split=SPLIT))
    assert parts.exists()
    preprocess(options(inputs=inputs, split=SPLIT, overwrite=True))
    assert not parts.exists()


def test_refused_run_goes_on_when_told_to_skip(
    options: Options, corpus: Path, caplog: pytest.LogCaptureFixture
):
    inputs = tuple(f"{corpus}/{name}" for name in ("d0.txt", "b.parquet", "c.jsonl"))
    with pytest.raises(CorpusError, match=r"c\.jsonl:71: no key"):
        preprocess(options(inputs=inputs, on_error="refuse"))
    with caplog.at_level("INFO"):
        (manifest,) = preprocess(options(inputs=inputs))
    assert "continuing: 1 of 12 units are left" in caplog.text
    assert manifest.skipped.count == 1
    with pytest.raises(ShardError, match="is there already"):
        preprocess(options(inputs=inputs, on_error="refuse"))


def test_run_that_wrote_nothing_is_in_nobodys_way(options: Options, tmp_path: Path):
    (tmp_path / "x.jsonl").write_text('{"body": "some text"}\n')
    inputs = (str(tmp_path / "x.jsonl"),)
    with pytest.raises(CorpusError, match="holds none"):
        preprocess(options(inputs=inputs))
    with pytest.raises(TokenizerError, match=r"it holds no text that can be read, so check"):
        preprocess(options(inputs=inputs, tokenizer="train:sentencepiece:300"))
    (manifest,) = preprocess(options(inputs=inputs, reading=ReaderOptions(text_key="body")))
    assert manifest.documents == 1


def test_folder_of_the_users_own_is_never_dropped(options: Options, tmp_path: Path):
    (tmp_path / "out.parts").mkdir()
    (tmp_path / "out.parts" / "mine.txt").write_text("precious")
    with pytest.raises(ShardError, match=r"out\.parts must hold"):
        preprocess(options(overwrite=True))
    assert (tmp_path / "out.parts" / "mine.txt").exists()


def test_only_one_process_writes_a_prefix(options: Options, tmp_path: Path):
    with pytest.raises(CorpusError):
        preprocess(options(on_error="refuse"))
    with (tmp_path / "out.parts" / "guard").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for changes in ({}, {"split": SPLIT}, {"split": SPLIT, "overwrite": True}):
            with pytest.raises(ShardError, match="out is being written by another process"):
                preprocess(options(**changes))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"workers": 0}, CorpusError, "workers must be at least 1, but got 0"),
        ({"split": ("0.9", "0.2")}, CorpusError, r"fractions of sum 1 .* but got 0.9,0.2"),
        ({"split": ("x", "1")}, CorpusError, "but got x,1"),
        ({"split": ("1",)}, CorpusError, "but got 1"),
        ({"split": ("1.5", "-0.5")}, CorpusError, "but got 1.5,-0.5"),
        ({"shard": ShardIndex(2, 2)}, CorpusError, "i from 0 to n-1, but got 2/2"),
        (
            {"reading": ReaderOptions(max_document_bytes=10)},
            CorpusError,
            "at least 1024 bytes, but got 10",
        ),
        ({"inputs": ("missing.jsonl",)}, CorpusError, "input missing.jsonl does not exist"),
        ({"tokenizer": "missing"}, TokenizerError, "tokenizer missing cannot be read"),
        (
            {"tokenizer": "train:sentencepiece:300", "shard": ShardIndex(0, 2)},
            TokenizerError,
            "must share one tokenizer, so train it first",
        ),
    ],
)
def test_requests_that_cannot_be(
    options: Options, changes: dict[str, object], error: type[Exception], message: str
):
    with pytest.raises(error, match=message):
        preprocess(options(**changes))


def test_corpus_without_documents(options: Options, tmp_path: Path):
    (tmp_path / "x.jsonl").write_text('{"body": "x"}\n')
    with pytest.raises(
        CorpusError, match=r"holds none, and 1 skipped \(.*x\.jsonl:1: no key 'text'.*--text-key"
    ):
        preprocess(options(inputs=(str(tmp_path / "x.jsonl"),)))


def test_tokenizer_without_an_end_token(options: Options, tmp_path: Path):
    folder = tmp_path / "hf"
    folder.mkdir()
    vocab = {"[UNK]": 0, "text": 1}
    definition = {"model": {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"}}
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": [], **definition}))
    with pytest.raises(TokenizerError, match="must name an end-of-sequence token"):
        preprocess(options(tokenizer=str(folder)))


def test_shards_that_do_not_belong_together(options: Options, corpus: Path, tmp_path: Path):
    shards = [ShardIndex(i, 2) for i in range(2)]
    for shard in shards:
        preprocess(options(shard=shard))
    preprocess(options("alone", inputs=(str(corpus / "a.jsonl"),), shard=shards[1]))
    preprocess(options("whole"))
    zero, one = (str(tmp_path / f"out.shard-{i}-of-2") for i in range(2))
    merged = str(tmp_path / "merged")
    with pytest.raises(ShardError, match=r"each of the 2 shards .* got those of index 0: name"):
        merge([zero], merged)
    with pytest.raises(ShardError, match=r"each of the 2 shards .* got those of index 0, 0"):
        merge([zero, zero], merged)
    with pytest.raises(ShardError, match=r"must come from one command, but .*alone.shard-1-of-2"):
        merge([zero, str(tmp_path / "alone.shard-1-of-2")], merged)
    with pytest.raises(ShardError, match=r"whole must be a shard made with --shard"):
        merge([zero, str(tmp_path / "whole")], merged)
    with pytest.raises(ShardError, match=r"neither .*nowhere.idx nor"):
        merge([zero, str(tmp_path / "nowhere")], merged)
    bin_path = Path(f"{one}.bin")
    bin_path.write_bytes(bin_path.read_bytes()[:-1] + b"\1")
    with pytest.raises(ShardError, match=r"out\.shard-1-of-2\.bin is damaged .its sha256"):
        merge([zero, one], merged)
    assert not list(tmp_path.glob("merged*"))


def test_side_that_gets_no_document_says_so(
    options: Options, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "x.txt").write_text("the only document")
    manifests: list[Manifest] = preprocess(
        options(inputs=(str(tmp_path / "x.txt"),), split=("0.999999", "0.000001"))
    )
    assert [manifest.documents for manifest in manifests] == [1, 0]
    assert set(existing_splits(str(tmp_path / "out"))) == {"train", "valid"}
    verify(tmp_path / "out_valid")
    with pytest.raises(ShardError, match="holds no tokens"):
        open_shards(tmp_path / "out_valid")
