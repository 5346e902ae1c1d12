"""Process groups of a layout."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from jaxtyping import TypeCheckError
from megatron.core.process_groups_config import ProcessGroupCollection

from armd_scale.config.schema import ParallelConfig
from armd_scale.loss import sum_over_targets
from armd_scale.parallel.environment import read_environment
from armd_scale.parallel.process_groups import process_groups
from tests.support.processes import FORKSERVER
from tests.support.spawn import run_on_ranks


def test_all_groups_of_a_single_process_have_size_1(groups: ProcessGroupCollection) -> None:
    sizes = [group.size() for group in (groups.tp, groups.pp, groups.dp, groups.mp, groups.cp)]
    assert sizes == [1] * 5


def sizes_and_sum(groups: ProcessGroupCollection) -> tuple[list[int], int]:
    """Return the group sizes, and the sum of the global ranks over the data parallel group."""
    total = torch.tensor(dist.get_rank())
    dist.all_reduce(total, group=groups.dp)
    return [group.size() for group in (groups.tp, groups.pp, groups.dp)], int(total)


@pytest.mark.slow
def test_the_data_parallel_size_follows_from_the_layout() -> None:
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


@pytest.mark.slow
def test_process_groups_can_be_created_again_after_the_block(tmp_path: Path) -> None:
    process = FORKSERVER.Process(target=join_twice, args=(tmp_path / "done",))
    process.start()
    process.join(60)
    assert (tmp_path / "done").read_text() == "done"


def violate_a_shape(groups: ProcessGroupCollection) -> bool:
    with pytest.raises(TypeCheckError):
        sum_over_targets(torch.zeros(2, 3), torch.ones(3, 2, dtype=torch.bool))
    return True


@pytest.mark.slow
def test_ranks_check_annotated_shapes() -> None:
    """Code that runs in `run_on_ranks` is checked like code in the test's own process."""
    assert run_on_ranks(violate_a_shape, 2) == [True, True]
