"""When a result is complete: its bytes are there, and the inputs have the same content."""

import os
from pathlib import Path

import pytest

from armd_scale.data.manifest import ShardIndex
from armd_scale.data.preprocess.documents import ReaderOptions
from armd_scale.data.preprocess.options import PreprocessOptions, identify_tokenizer, make_plan
from armd_scale.data.preprocess.pipeline import preprocess
from armd_scale.data.tokenizer import load_tokenizer
from armd_scale.errors import ShardError
from tests.support.corpus import MakeOptions, json_lines, result_files


@pytest.fixture
def complete(options: MakeOptions, tmp_path: Path) -> PreprocessOptions:
    """The options of a run that is complete, on a corpus of two files that can be changed."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_bytes(json_lines(["first text", "second text"]))
    (tmp_path / "in" / "b.txt").write_text("third text")
    changed = options("result/out", inputs=(str(tmp_path / "in"),))
    preprocess(changed)
    return changed


def is_complete(options: PreprocessOptions) -> bool:
    """Whether a run sees that nothing is to do; without that it refuses to replace the result."""
    before = result_files(Path(options.output).parent)
    refusal = ""
    try:
        preprocess(options)
    except ShardError as error:
        refusal = str(error)
    assert not refusal or "already exists and was made from other inputs" in refusal
    assert result_files(Path(options.output).parent) == before
    return not refusal


def test_new_modification_times_do_not_matter(complete: PreprocessOptions, tmp_path: Path):
    (tmp_path / "in" / "a.jsonl").touch()
    os.utime(tmp_path / "in" / "b.txt", (2e9, 2e9))
    assert is_complete(complete)


def test_an_edit_that_keeps_size_and_time_is_noticed(complete: PreprocessOptions, tmp_path: Path):
    for name in ("a.jsonl", "b.txt"):
        path = tmp_path / "in" / name
        status, content = path.stat(), path.read_bytes()
        path.write_bytes(content.replace(b"text", b"word"))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert not is_complete(complete)
        path.write_bytes(content)
        assert is_complete(complete)


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_damaged_shards_are_noticed(complete: PreprocessOptions, suffix: str):
    path = Path(complete.output + suffix)
    content = path.read_bytes()
    for damaged in (content[:-1], content[:-1] + bytes([content[-1] ^ 1])):
        path.write_bytes(damaged)
        assert not is_complete(complete)
    path.write_bytes(content)
    assert is_complete(complete)


def test_a_shard_is_complete_by_its_own_part(options: MakeOptions, tmp_path: Path):
    path = tmp_path / "x.txt"
    path.write_text("line\n" * 420_000)
    inputs = (str(path),)
    reader = ReaderOptions(document_unit="line")
    shards = [
        options("result/out", inputs=inputs, reader=reader, shard=ShardIndex(i, 2))
        for i in range(2)
    ]
    for shard in shards:
        preprocess(shard)
    assert all(map(is_complete, shards))
    path.write_text("line\n" * 419_999 + "LINE\n")
    assert [is_complete(shard) for shard in shards] == [True, False]


def test_work_that_a_stopped_run_left_beside_a_complete_result_is_removed(
    complete: PreprocessOptions,
):
    """As a kill between the last rename and the removal of the workspace leaves it."""
    work = Path(f"{complete.output}.work")
    work.mkdir()
    tokenizer = identify_tokenizer(load_tokenizer(complete.tokenizer))
    (work / "key").write_text(make_plan(complete, tokenizer=tokenizer).workspace_key)
    (work / "publishing").touch()
    preprocess(complete)
    assert not work.exists()
