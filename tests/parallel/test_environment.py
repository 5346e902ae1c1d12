"""The launcher's variables."""

import os

import pytest
import torch

from armd_scale.errors import TrainingError
from armd_scale.parallel.environment import Environment, read_environment

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")


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


def place(environment: Environment) -> tuple[int, int, int]:
    return environment.rank, environment.world_size, environment.local_rank


def refused() -> str:
    with pytest.raises(TrainingError) as caught:
        read_environment()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_a_launcher_the_job_is_one_process() -> None:
    environment = read_environment()
    assert place(environment) == (0, 1, 0)
    assert environment.is_main


def test_torchrun_goes_before_slurm(launcher: pytest.MonkeyPatch) -> None:
    set_all(launcher, SLURM_PROCID=9, SLURM_NTASKS=16, SLURM_LOCALID=1)
    assert place(read_environment()) == (9, 16, 1)
    assert os.environ["LOCAL_RANK"] == "1"  # where DeepSpeed looks
    set_all(launcher, RANK=3, WORLD_SIZE=8, LOCAL_RANK=3)
    environment = read_environment()
    assert place(environment) == (3, 8, 3)
    assert not environment.is_main


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
        made = Environment(rank=0, world_size=1, local_rank=0, device=torch.device(device))
        assert made.backend == backend
