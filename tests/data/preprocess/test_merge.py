"""Merged shards equal a single run."""

from pathlib import Path

import pytest

from armd_scale.data.manifest import ShardIndex
from armd_scale.data.preprocess.merge import merge
from armd_scale.data.preprocess.pipeline import preprocess
from armd_scale.errors import ShardError
from tests.support.corpus import SPLIT, MakeOptions, result_files


@pytest.mark.parametrize("split", [(), SPLIT], ids=["whole", "split"])
@pytest.mark.parametrize("count", [1, 3, 20])
def test_merged_shards_equal_the_single_run(
    options: MakeOptions, tmp_path: Path, split: tuple[str, ...], count: int
):
    (tmp_path / "one").mkdir()
    preprocess(options("one/out", split=split))
    for index in range(count):
        shard = ShardIndex(index, count)
        preprocess(options("many/out", split=split, shard=shard, max_skipped=1.0))
    shards = [str(tmp_path / f"many/out.shard-{i}-of-{count}") for i in reversed(range(count))]
    (tmp_path / "merged").mkdir()
    merge(shards, str(tmp_path / "merged/out"))
    assert result_files(tmp_path / "merged") == result_files(tmp_path / "one")


def test_shards_that_do_not_belong_together_are_not_merged(
    options: MakeOptions, corpus: Path, tmp_path: Path
):
    shards = [ShardIndex(i, 2) for i in range(2)]
    for shard in shards:
        preprocess(options(shard=shard, max_skipped=1.0))
    preprocess(options("alone", inputs=(str(corpus / "a.jsonl"),), shard=shards[1]))
    preprocess(options("whole", max_skipped=1.0))
    zero, one = (str(tmp_path / f"out.shard-{i}-of-2") for i in range(2))
    merged = str(tmp_path / "merged")
    with pytest.raises(ShardError, match=r"each of the 2 shards .*got those of index 0\): give"):
        merge([zero], merged)
    with pytest.raises(ShardError, match=r"each of the 2 shards .*\(got those of index 0, 0\)"):
        merge([zero, zero], merged)
    with pytest.raises(
        ShardError, match=r"must come from the same command, but .*alone.shard-1-of-2"
    ):
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
