"""Content hashes of inputs, and inputs that change while they are read."""

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from armd_scale.data.manifest import add_hashes
from armd_scale.data.preprocess.documents import ReaderOptions
from armd_scale.data.preprocess.encode_job import EncodeJob
from armd_scale.data.preprocess.encode_unit import encode_unit
from armd_scale.data.preprocess.input_hash import hash_unit
from armd_scale.data.preprocess.sources import find_sources
from armd_scale.data.preprocess.work_units import WorkUnit, make_work_units
from armd_scale.data.tokenizer import load_tokenizer
from armd_scale.errors import CorpusError
from tests.support.corpus import json_lines

# More than one batch of encode_unit.
TEXTS = [f"{i} " + hex(i**800) for i in range(1, 700)]


@given(step=st.integers(400_000, 5_000_000), kind=st.sampled_from(["text", "lines"]))
def test_the_sum_over_all_ranges_is_the_hash_of_the_file(
    tmp_path_factory: pytest.TempPathFactory, step: int, kind: str
):
    path = tmp_path_factory.mktemp("hash") / "x.txt"
    content = bytes(range(250)) * (3 << 12) + b"end"
    path.write_bytes(content)
    (whole,) = hash_unit(WorkUnit("text", (str(path),), 0))
    parts = [
        hash_unit(WorkUnit(kind, (str(path),), 0, start, start + step))[0]  # type: ignore[arg-type]
        for start in range(0, len(content), step)
    ]
    assert add_hashes(parts) == whole
    path.write_bytes(content[:-1] + b"D")
    assert hash_unit(WorkUnit("text", (str(path),), 0)) != [whole]


def test_blocks_in_another_order_have_another_hash(tmp_path: Path):
    hashes: list[str] = []
    for name, blocks in (("ab", (b"a", b"b")), ("ba", (b"b", b"a"))):
        (tmp_path / name).write_bytes(b"".join(block * (1 << 20) for block in blocks))
        hashes += hash_unit(WorkUnit("text", (str(tmp_path / name),), 0))
    assert hashes[0] != hashes[1]


def write_arrow(path: Path) -> None:
    table = pa.table({"text": TEXTS})
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=100)


WRITERS: dict[str, Callable[[Path], object]] = {
    "x.jsonl": lambda path: path.write_bytes(json_lines(TEXTS)),
    "x.txt": lambda path: path.write_text("\n".join(TEXTS)),
    "x.jsonl.gz": lambda path: path.write_bytes(gzip.compress(json_lines(TEXTS))),
    "x.jsonl.zst": lambda path: path.write_bytes(zstandard.compress(json_lines(TEXTS))),
    "x.parquet": lambda path: pq.write_table(pa.table({"text": TEXTS}), path, row_group_size=100),
    "x.arrow": write_arrow,
}


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


CHANGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "appended to": append,
    "written again": lambda path: os.utime(path, ns=(0, 0)),
    "removed": Path.unlink,
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, corpus: Path, name: str, change: str
):
    path = tmp_path / name
    WRITERS[name](path)
    reader = ReaderOptions(max_document_bytes=1 << 16)
    unit = make_work_units(find_sources([str(path)])[0], reader)[0]
    tokenizer = load_tokenizer(corpus.parent / "tokenizer")
    job = EncodeJob(
        folder=tmp_path,
        tokenizer=corpus.parent / "tokenizer",
        fingerprint=tokenizer.fingerprint,
        reader=reader,
        start_tokens=(),
        end_token=None,
        dtype="uint16",
        split_names=("",),
        split_bounds=(1 << 64,),
        special_tokens="text",
        on_error="skip",
    )
    encoding = encode_unit(job, tokenizer, unit_index=0, unit=unit)
    if name != "x.parquet":  # whose row groups are units of less than one batch
        next(encoding)
    CHANGES[change](path)
    with pytest.raises(CorpusError, match="must not change while it is read, but did") as refusal:
        list(encoding)
    assert str(refusal.value).startswith(str(path))
    assert not list(tmp_path.glob("*.json"))
