"""The launcher's variables."""

import os

import pytest
import torch

from armd_scale.errors import TrainingError
from armd_scale.parallel.environment import DistributedEnv, first_slurm_host, read_environment

NAMES = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT",
    "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS", "SLURM_JOB_ID",
    "SLURM_STEP_NODELIST", "SLURM_LAUNCH_NODE_IPADDR",
)  # fmt: skip
STEP = {
    "SLURM_PROCID": 9, "SLURM_STEP_NUM_TASKS": 16, "SLURM_LOCALID": 1, "SLURM_JOB_ID": 47_123,
    "SLURM_STEP_NODELIST": "localhost,n[1-2]",
}  # fmt: skip


@pytest.fixture(autouse=True)
def launcher(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No launcher; what the test or the code sets is undone."""
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that it is restored even where the code sets it
        monkeypatch.delenv(name)
    return monkeypatch


def set_all(launcher: pytest.MonkeyPatch, **values: object) -> None:
    for name, value in values.items():
        launcher.setenv(name, str(value))


def place(environment: DistributedEnv) -> tuple[int, int, int]:
    return environment.rank, environment.world_size, environment.local_rank


def refused() -> str:
    with pytest.raises(TrainingError) as caught:
        read_environment()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_a_launcher_the_job_is_one_process() -> None:
    environment = read_environment()
    assert place(environment) == (0, 1, 0)
    assert environment.is_rank0


def test_torchrun_goes_before_slurm(launcher: pytest.MonkeyPatch) -> None:
    set_all(launcher, **STEP)
    assert place(read_environment()) == (9, 16, 1)
    assert os.environ["LOCAL_RANK"] == "1"  # where DeepSpeed looks
    set_all(launcher, RANK=3, WORLD_SIZE=8, LOCAL_RANK=3)
    environment = read_environment()
    assert place(environment) == (3, 8, 3)
    assert not environment.is_rank0


def test_a_batch_script_is_no_part_of_a_step(launcher: pytest.MonkeyPatch) -> None:
    set_all(launcher, SLURM_PROCID=0, SLURM_NTASKS=16, SLURM_LOCALID=0, SLURM_JOB_ID=7)
    assert place(read_environment()) == (0, 1, 0)


def test_slurm_s_processes_meet_at_their_first_node(launcher: pytest.MonkeyPatch) -> None:
    set_all(launcher, **STEP)
    assert read_environment().master_addr == "localhost"
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("localhost", "17123")


def test_a_node_without_an_address_is_found_where_srun_ran(launcher: pytest.MonkeyPatch) -> None:
    nodes = {"SLURM_STEP_NODELIST": "n.invalid", "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1"}
    set_all(launcher, **{**STEP, **nodes})
    assert read_environment().master_addr == "10.0.0.1"


def test_the_user_may_say_where_they_meet(launcher: pytest.MonkeyPatch) -> None:
    set_all(launcher, **STEP, MASTER_ADDR="10.0.0.2", MASTER_PORT=5)
    assert read_environment().master_addr == "10.0.0.2"
    assert os.environ["MASTER_PORT"] == "5"


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu7", "gpu7"),
        ("gpu7,gpu9", "gpu7"),
        ("gpu[08-11,15],login", "gpu08"),
        ("rack[2]-gpu", "rack2-gpu"),
        ("a-b.c[0012]", "a-b.c0012"),
    ],
)
def test_the_first_of_slurm_s_nodes(nodes: str, first: str) -> None:
    assert first_slurm_host(nodes) == first


def test_variables_that_contradict_one_another(launcher: pytest.MonkeyPatch) -> None:
    set_all(launcher, RANK=8, WORLD_SIZE=8, LOCAL_RANK=0)
    assert "got rank 8 of 8" in refused()


@pytest.mark.parametrize("values", [{"RANK": 0}, {"RANK": 0, "WORLD_SIZE": "two", "LOCAL_RANK": 0}])
def test_variables_that_are_missing_or_no_numbers(
    launcher: pytest.MonkeyPatch, values: dict[str, object]
) -> None:
    set_all(launcher, **values)
    assert "must set RANK, WORLD_SIZE, LOCAL_RANK to integers" in refused()


def test_the_backend_serves_the_device() -> None:
    devices = {"cpu": "gloo", "cuda": "nccl"}
    for device, backend in devices.items():
        made = DistributedEnv(rank=0, world_size=1, local_rank=0, device=torch.device(device))
        assert made.backend == backend
