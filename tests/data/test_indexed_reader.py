import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron.core.datasets.indexed_dataset import DType, IndexedDataset, IndexedDatasetBuilder

from armd_scale.data.indexed_format import HEADER, IndexedPart, dtype_for, write_bin, write_idx
from armd_scale.data.indexed_reader import open_shards, verify
from armd_scale.data.manifest import load_manifest
from armd_scale.data.preprocess.options import PreprocessOptions
from armd_scale.data.preprocess.pipeline import preprocess
from armd_scale.data.tokenizer_training import train_sentencepiece
from armd_scale.errors import ShardError
from armd_scale.files import sha256_file
from tests.support.shards import write_pair

DOCUMENTS = [[5, 6, 7], [1], [], [9, 65_498, 2, 4], [3, 3]]


def write_with_megatron(prefix: Path, documents: list[list[list[int]]], dtype: type) -> None:
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for document in documents:
        tokens = [token for sequence in document for token in sequence]
        builder.add_document(torch.tensor(tokens, dtype=torch.int64), [*map(len, document)])
    builder.finalize(f"{prefix}.idx")


def write_part(
    folder: Path, name: str, documents: list[list[list[int]]], dtype: np.dtype
) -> IndexedPart:
    """Write documents of one or more sequences each."""
    sequences = [sequence for document in documents for sequence in document]
    starts = np.cumsum([0, *map(len, documents)])[:-1].astype(np.int64)
    tokens = np.array([token for sequence in sequences for token in sequence], dtype)
    (folder / f"{name}.bin").write_bytes(tokens.tobytes())
    lengths = np.array([len(sequence) for sequence in sequences], np.int32)
    (folder / f"{name}.lengths").write_bytes(b"head" + lengths.tobytes())
    (folder / f"{name}.documents").write_bytes(b"longer head" + starts.tobytes())
    paths = {f"{kind}_path": folder / f"{name}.{kind}" for kind in ("bin", "lengths", "documents")}
    return IndexedPart(
        **paths,
        lengths_offset=4,
        num_sequences=len(sequences),
        documents_offset=11,
        num_documents=len(documents),
    )


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """A pair without a manifest, as Megatron writes it."""
    write_with_megatron(tmp_path / "pair", [[document] for document in DOCUMENTS], np.uint16)
    return tmp_path / "pair"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair with a manifest."""
    folder = tmp_path_factory.mktemp("built")
    for i in range(30):
        (folder / f"{i:02}.txt").write_text(f"document {i} " * (i + 1))
    train_sentencepiece(["document 0123456789 " * 50], 300).save(folder / "tokenizer")
    prefix = folder / "out"
    preprocess(
        PreprocessOptions(
            inputs=(str(folder),), output=str(prefix), tokenizer=str(folder / "tokenizer")
        )
    )
    return prefix


def copy_pair(prefix: Path, folder: Path) -> Path:
    for suffix in (".bin", ".idx", ".json"):
        (folder / f"out{suffix}").write_bytes(Path(f"{prefix}{suffix}").read_bytes())
    (folder / "out.tokenizer").mkdir()
    model = (prefix.with_name("out.tokenizer") / "tokenizer.model").read_bytes()
    (folder / "out.tokenizer" / "tokenizer.model").write_bytes(model)
    return folder / "out"


def damage(path: Path, offset: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def truncate(path: Path, num_bytes: int) -> None:
    path.write_bytes(path.read_bytes()[:-num_bytes])


@settings(max_examples=50, deadline=None)
@given(
    parts=st.lists(
        st.lists(
            st.lists(st.lists(st.integers(0, 65_499), max_size=5), min_size=1, max_size=3),
            max_size=5,
        ),
        min_size=1,
        max_size=4,
    ),
    vocab_size=st.sampled_from([300, 65_499, 65_500, 200_000]),
)
def test_files_equal_those_of_megatrons_builder(
    tmp_path_factory: pytest.TempPathFactory, parts: list[list[list[list[int]]]], vocab_size: int
):
    folder = tmp_path_factory.mktemp("pairs")
    dtype = dtype_for(vocab_size)
    assert dtype == DType.optimal_dtype(vocab_size)
    documents = [document for part in parts for document in part]
    write_with_megatron(folder / "theirs", documents, dtype.type)
    written = [write_part(folder, str(i), part, dtype) for i, part in enumerate(parts)]
    digests = [
        write_bin(folder / "ours.bin", written),
        write_idx(folder / "ours.idx", written, dtype=dtype),
    ]
    for suffix, digest in zip((".bin", ".idx"), digests, strict=True):
        ours, theirs = folder / f"ours{suffix}", folder / f"theirs{suffix}"
        assert ours.read_bytes() == theirs.read_bytes()
        assert sha256_file(ours) == digest


def test_pair_from_elsewhere_is_one_stream(pair: Path):
    shards = open_shards(pair)
    stream = [token for document in DOCUMENTS for token in document]
    assert shards.manifest is None
    assert (shards.num_tokens, shards.num_documents) == (10, 5)
    assert shards.document_starts.tolist() == [0, 3, 4, 4, 8]
    assert shards.document_starts.dtype == np.int64
    for start in range(11):
        for count in range(11 - start):
            assert shards.read(start, count).tolist() == stream[start : start + count]
    assert verify(pair) is None


def test_documents_of_several_sequences(tmp_path: Path):
    builder = IndexedDatasetBuilder(str(tmp_path / "pair.bin"), dtype=np.int32)
    builder.add_document(torch.arange(5), [2, 3])
    builder.add_document(torch.arange(5, 9), [4])
    builder.finalize(str(tmp_path / "pair.idx"))
    shards = open_shards(tmp_path / "pair")
    assert shards.document_starts.tolist() == [0, 5]
    assert shards.read(1, 7).tolist() == list(range(1, 8))


def test_reads_are_copies_that_outlive_the_shards(pair: Path):
    tokens = open_shards(pair).read(0, 4)
    assert tokens.dtype == np.int64
    tokens += 1
    assert open_shards(pair).read(0, 4).tolist() == [5, 6, 7, 1]


def test_shards_travel_to_other_processes(pair: Path):
    copy = pickle.loads(pickle.dumps(open_shards(pair)))
    assert copy.read(2, 3).tolist() == [7, 1, 9]


def test_manifest_counts_what_is_there(built: Path):
    shards = open_shards(built)
    manifest = verify(built)
    assert manifest == load_manifest(built) == shards.manifest
    assert manifest is not None
    assert (manifest.documents, manifest.tokens) == (30, shards.num_tokens)
    assert manifest.text_bytes == sum(source.size for source in manifest.sources)
    assert manifest.sha256["bin"] == sha256_file(Path(f"{built}.bin"))
    assert manifest.tokenizer_folder(built) == Path(f"{built}.tokenizer")
    dataset = IndexedDataset(str(built))
    assert all(dataset[i][-1] == manifest.eod for i in range(len(dataset)))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda p: Path(f"{p}.bin").unlink(), r"out\.bin does not exist: check the prefix"),
        (lambda p: Path(f"{p}.idx").unlink(), r"out\.idx does not exist: check the prefix"),
        (
            lambda p: truncate(Path(f"{p}.bin"), 1),
            r"out\.bin is damaged \(by its index it must have \d+",
        ),
        (lambda p: truncate(Path(f"{p}.idx"), 1), r"out\.idx is damaged \(it must have \d+ bytes"),
        (lambda p: truncate(Path(f"{p}.idx"), 400), r"out\.idx is damaged \(it must have"),
        (lambda p: Path(f"{p}.idx").write_bytes(b""), r"out\.idx is not a Megatron index file"),
        (lambda p: damage(Path(f"{p}.idx"), 0, b"X"), r"out\.idx is not a Megatron index file"),
        (
            lambda p: damage(Path(f"{p}.idx"), 9, b"\2"),
            r"must have version 1 .* but has version 2",
        ),
        (lambda p: damage(Path(f"{p}.idx"), 17, b"\1"), r"integer tokens, .* dtype code 1"),
        (lambda p: Path(f"{p}.json").write_text("{"), r"out\.json must be a JSON file with a mapp"),
        (lambda p: Path(f"{p}.json").write_text("{}"), r"out\.json must be a manifest of vers"),
        (lambda p: flip_digit(Path(f"{p}.json")), r"out\.json must be as it was written"),
    ],
)
def test_what_opening_notices(built: Path, tmp_path: Path, harm: object, message: str):
    prefix = copy_pair(built, tmp_path)
    harm(prefix)  # type: ignore[operator]
    for check in (open_shards, verify):
        with pytest.raises(ShardError, match=message):
            check(prefix)


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_bit_rot_anywhere_is_found(built: Path, tmp_path: Path, suffix: str):
    prefix = copy_pair(built, tmp_path)
    path = Path(f"{prefix}{suffix}")
    content = path.read_bytes()
    for offset in range(0, len(content), 37):
        path.write_bytes(content)
        damage(path, offset, bytes([content[offset] ^ 4]))
        with pytest.raises(ShardError, match=r"out\.(bin|idx) "):
            verify(prefix)
    path.write_bytes(content)
    verify(prefix)


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (34, np.int32(4), "its offsets do not follow from its lengths"),
        (34, np.int32(-1), "its offsets do not follow from its lengths"),
        (54 + 8, np.int64(4), "its offsets do not follow from its lengths"),
        (94 + 8, np.int64(9), "its document indices are not in order"),
        (94, np.int64(1), "its documents do not cover its sequences"),
    ],
)
def test_what_an_index_alone_tells(pair: Path, offset: int, value: np.generic, message: str):
    damage(Path(f"{pair}.idx"), offset, value.tobytes())
    with pytest.raises(ShardError, match=f"pair.idx is damaged .{message}"):
        verify(pair)


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (34, np.int32(4), "its lengths do not add up"),
        (34, np.int32(-1), "its lengths do not add up"),
        (94 + 8, np.int64(9), "its documents do not cover its sequences"),
        (94 + 8, np.int64(-1), "its documents do not cover its sequences"),
        (94, np.int64(1), "its documents do not cover its sequences"),
    ],
)
def test_an_index_that_points_outside_is_not_opened(
    pair: Path, offset: int, value: np.generic, message: str
):
    damage(Path(f"{pair}.idx"), offset, value.tobytes())
    with pytest.raises(ShardError, match=rf"pair\.idx is damaged .{message}"):
        open_shards(pair)


def edit_manifest(prefix: Path, **changes: object) -> None:
    """Change values of a manifest as one of an earlier version, without a hash of its own."""
    path = Path(f"{prefix}.json")
    values = {**json.loads(path.read_text()), **changes}
    values.pop("manifest_sha256", None)
    path.write_text(json.dumps(values))


def flip_digit(manifest: Path) -> None:
    text = manifest.read_text()
    at = text.index('"tokens": ') + len('"tokens": ')
    manifest.write_text(text[:at] + ("2" if text[at] != "2" else "3") + text[at + 1 :])


def test_manifest_of_something_else(built: Path, tmp_path: Path):
    prefix = copy_pair(built, tmp_path)
    edit_manifest(prefix, tokens=1)
    with pytest.raises(ShardError, match=r"out\.json is damaged .it records .* but the files have"):
        verify(prefix)
    edit_manifest(prefix, vocab_size=3)
    with pytest.raises(ShardError, match=r"token \d+ is \d+, outside the vocabulary of 3"):
        verify(prefix)
    edit_manifest(prefix, version=99)
    with pytest.raises(ShardError, match=r"must be a manifest of version 1 .got version 99"):
        open_shards(prefix)


def test_tokenizer_of_something_else(built: Path, tmp_path: Path):
    prefix = copy_pair(built, tmp_path)
    train_sentencepiece(["another text altogether " * 50], 300).save(tmp_path / "out.tokenizer")
    with pytest.raises(ShardError, match="it is not the tokenizer that the shards were made with"):
        verify(prefix)


def test_prefix_of_a_split_needs_its_side(tmp_path: Path):
    write_with_megatron(tmp_path / "out_train", [DOCUMENTS], np.uint16)
    with pytest.raises(
        ShardError, match=r"out\.bin does not exist: give .*out_train or another split"
    ):
        open_shards(tmp_path / "out")


def test_pair_without_tokens(tmp_path: Path):
    write_with_megatron(tmp_path / "pair", [], np.uint16)
    verify(tmp_path / "pair")
    with pytest.raises(ShardError, match="pair contains no tokens"):
        open_shards(tmp_path / "pair")


def test_a_file_that_is_truncated_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    prefix = write_pair(tmp_path / "pair", [[1] * 5000, [2] * 5000])
    tokens = open_shards(prefix)
    assert tokens.read(9000, 100).tolist() == [2] * 100
    os.truncate(f"{prefix}.bin", 4096)
    assert tokens.read(0, 100).tolist() == [1] * 100
    with pytest.raises(ShardError, match=r"pair\.bin is damaged \(it was truncated since"):
        tokens.read(9000, 100)


def test_negative_lengths_are_refused_although_they_add_up(tmp_path: Path) -> None:
    prefix = write_pair(tmp_path / "pair", [[1] * 5, [2] * 5, [3] * 5])
    index = bytearray(Path(f"{prefix}.idx").read_bytes())
    index[HEADER.size : HEADER.size + 8] = np.array([12, -2], np.int32).tobytes()
    Path(f"{prefix}.idx").write_bytes(index)
    with pytest.raises(ShardError, match="its lengths do not add up"):
        open_shards(prefix)


def num_open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_thousand_datasets_need_few_open_files(tmp_path: Path) -> None:
    before = num_open_files()
    shards = [
        open_shards(write_pair(tmp_path / f"{k}", [[k] * 3, [k + 1] * 2])) for k in range(1000)
    ]
    assert num_open_files() <= before + 1
    for k, tokens in enumerate(shards):
        assert tokens.read(2, 2).tolist() == [k, k + 1]
    assert num_open_files() < before + 200
    assert shards[0].read(0, 1).tolist() == [0]


def test_a_dataset_that_is_replaced_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    prefix = write_pair(tmp_path / "pair", [[1] * 50])
    tokens = open_shards(prefix)
    os.utime(f"{prefix}.bin", ns=(5, 5))  # as `touch` does
    assert tokens.read(0, 2).tolist() == [1, 1]
    before = open_shards(prefix)
    write_pair(tmp_path / "new", [[2] * 50])
    (tmp_path / "new.bin").rename(f"{prefix}.bin")
    with pytest.raises(ShardError, match=r"pair\.bin must stay as it is during a run"):
        before.read(0, 2)
    assert open_shards(prefix).read(0, 2).tolist() == [2, 2]
