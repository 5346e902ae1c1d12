"""Process groups of a layout."""

import multiprocessing
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core.process_groups_config import ProcessGroupCollection

from armd_scale.config.schema import ParallelConfig
from armd_scale.parallel.environment import read_environment
from armd_scale.parallel.process_groups import process_groups
from tests.support.spawn import run_on_ranks


def test_one_process_has_every_group_of_size_1(groups: ProcessGroupCollection) -> None:
    sizes = [group.size() for group in (groups.tp, groups.pp, groups.dp, groups.mp, groups.cp)]
    assert sizes == [1] * 5


def sizes_and_sum(groups: ProcessGroupCollection) -> tuple[list[int], int]:
    """Sizes of the groups, and the sum of the ranks in the data parallel one."""
    total = torch.tensor(dist.get_rank())
    dist.all_reduce(total, group=groups.dp)
    return [group.size() for group in (groups.tp, groups.pp, groups.dp)], int(total)


def test_data_parallelism_takes_the_ranks_that_are_left() -> None:
    assert run_on_ranks(sizes_and_sum, 2) == [([1, 1, 2], 1)] * 2
    split = ParallelConfig(tensor=2)
    assert run_on_ranks(sizes_and_sum, 2, parallel=split) == [([2, 1, 1], 0), ([2, 1, 1], 1)]


def join_twice(file: Path) -> None:
    for _ in range(2):
        with process_groups(read_environment(), ParallelConfig()) as groups:
            assert dist.is_initialized()
            assert groups.dp.size() == 1
        assert not dist.is_initialized()
    file.write_text("done")


def test_a_job_is_left_at_the_end_and_may_be_joined_again(tmp_path: Path) -> None:
    server = multiprocessing.get_context("forkserver")
    process = server.Process(target=join_twice, args=(tmp_path / "done",))
    process.start()
    process.join(60)
    assert (tmp_path / "done").read_text() == "done"
