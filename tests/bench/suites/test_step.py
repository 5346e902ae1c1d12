"""The step benchmark runs every network and reports shares and MFU."""

from typing import Any

import torch

from armd_scale.bench.suites.step import step_functions, time_steps
from tests.bench.workloads import TINY


def test_every_network_runs_a_step(groups) -> None:
    steps = step_functions(TINY, groups, device=torch.device("cpu"))
    assert set(steps) == {"ar", "armd", "armd_dense", "armd_l2r", "megatron_gpt", "hf_llama"}
    for step in steps.values():
        step()


def test_a_row_has_shares_of_operators_and_mfu(groups) -> None:
    rows: list[dict[str, Any]]
    rows = time_steps(TINY, groups, device=torch.device("cpu"), repeats=1, profile=True)
    for row in rows:
        assert 0 < row["matmul share"] < 1
        assert (row["attention share"] > 0) == (row["case"] != "megatron_gpt")
        assert 0 < row["mfu"] < 1
        assert (row["FLOPs ratio"] > 1) == (row["case"] in ("armd", "armd_dense"))
