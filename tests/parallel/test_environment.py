"""Launch environment under torchrun, srun, and neither."""

import os
import pty
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch

import armd_scale
from armd_scale.errors import TrainingError
from armd_scale.parallel.environment import DistributedEnv, first_slurm_host, read_environment

NAMES = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT",
    "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS", "SLURM_JOB_ID",
    "SLURM_STEP_NODELIST", "SLURM_LAUNCH_NODE_IPADDR", "SLURM_STEP_ID", "SLURM_PTY_PORT",
    "TORCHELASTIC_USE_AGENT_STORE",
)  # fmt: skip
STEP = {
    "SLURM_PROCID": 9, "SLURM_STEP_NUM_TASKS": 16, "SLURM_LOCALID": 1, "SLURM_JOB_ID": 47_123,
    "SLURM_STEP_NODELIST": "localhost,n[1-2]",
}  # fmt: skip


@pytest.fixture(autouse=True)
def launcher(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Start without a launcher; variables that the test or the code sets are restored."""
    for name in NAMES:
        monkeypatch.setenv(
            name, ""
        )  # registers the variable, so that it is restored even if the code sets it
        monkeypatch.delenv(name)
    return monkeypatch


def set_all(launcher: pytest.MonkeyPatch, **values: object) -> None:
    for name, value in values.items():
        launcher.setenv(name, str(value))


def ranks(environment: DistributedEnv) -> tuple[int, int, int]:
    return environment.rank, environment.world_size, environment.local_rank


def error_message() -> str:
    with pytest.raises(TrainingError) as error:
        read_environment()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_without_a_launcher_the_job_is_one_process() -> None:
    environment = read_environment()
    assert ranks(environment) == (0, 1, 0)
    assert environment.is_rank0


def test_torchrun_takes_precedence_over_slurm(launcher: pytest.MonkeyPatch) -> None:
    set_all(launcher, **STEP)
    assert ranks(read_environment()) == (9, 16, 1)
    assert os.environ["LOCAL_RANK"] == "1"  # where DeepSpeed looks
    set_all(launcher, RANK=3, WORLD_SIZE=8, LOCAL_RANK=3)
    environment = read_environment()
    assert ranks(environment) == (3, 8, 3)
    assert not environment.is_rank0


def test_a_batch_script_outside_srun_is_a_job_of_one_process(launcher: pytest.MonkeyPatch) -> None:
    set_all(launcher, SLURM_PROCID=0, SLURM_NTASKS=16, SLURM_LOCALID=0, SLURM_JOB_ID=7)
    assert ranks(read_environment()) == (0, 1, 0)


def test_under_srun_the_rendezvous_is_the_first_host(launcher: pytest.MonkeyPatch) -> None:
    set_all(launcher, **STEP)
    assert read_environment().master_addr == "localhost"
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("localhost", "17123")


def test_steps_and_jobs_meet_at_ports_of_their_own(launcher: pytest.MonkeyPatch) -> None:
    ports = set()
    for job in range(47_123, 47_133):
        for step in range(10):
            set_all(launcher, **{**STEP, "SLURM_JOB_ID": job, "SLURM_STEP_ID": step})
            launcher.delenv("MASTER_PORT", raising=False)
            port = read_environment().master_port
            assert port is not None
            assert 10_000 <= port < 30_000
            ports.add(port)
    assert len(ports) == 100


def test_a_shell_of_srun_is_a_job_of_one_process(launcher: pytest.MonkeyPatch) -> None:
    """A step that is started from that shell inherits its variables, but no terminal."""
    set_all(launcher, **{**STEP, "SLURM_PROCID": 0, "SLURM_PTY_PORT": 32_779})
    rank_of = "from armd_scale.parallel.environment import read_environment as read; "
    rank_of += "print(read().world_size)"
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", rank_of])
    output = b""
    with suppress(OSError):  # the end of a terminal
        while data := os.read(terminal, 1024):
            output += data
    os.waitpid(pid, 0)
    assert output.split()[-1] == b"1"
    without = subprocess.run(
        [sys.executable, "-c", rank_of], start_new_session=True, capture_output=True, text=True
    )
    assert without.stdout.strip() == "16"


def test_the_port_and_who_listens_there(launcher: pytest.MonkeyPatch) -> None:
    assert read_environment().master_port is None
    set_all(launcher, RANK=0, WORLD_SIZE=2, LOCAL_RANK=0, MASTER_PORT=29_500)
    environment = read_environment()
    assert (environment.master_port, environment.has_agent_store) == (29_500, False)
    set_all(launcher, TORCHELASTIC_USE_AGENT_STORE=True, MASTER_PORT="many")
    environment = read_environment()
    assert (environment.master_port, environment.has_agent_store) == (None, True)


def test_a_host_name_that_does_not_resolve_is_replaced_by_the_launch_address(
    launcher: pytest.MonkeyPatch,
) -> None:
    nodes = {"SLURM_STEP_NODELIST": "n.invalid", "SLURM_LAUNCH_NODE_IPADDR": "10.0.0.1"}
    set_all(launcher, **{**STEP, **nodes})
    assert read_environment().master_addr == "10.0.0.1"


def test_rendezvous_variables_of_the_user_are_kept(launcher: pytest.MonkeyPatch) -> None:
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
        ("rack[0-1]node[01-04]", "rack0node01"),
        ("rack[3,5]node[07,9-12]-ib,login1", "rack3node07-ib"),
        ("a[1-2][05]b[9],x[1]", "a105b9"),
    ],
)
def test_first_host_of_a_slurm_node_list(nodes: str, first: str) -> None:
    assert first_slurm_host(nodes) == first


def test_a_rank_outside_the_world_is_an_error(launcher: pytest.MonkeyPatch) -> None:
    set_all(launcher, RANK=8, WORLD_SIZE=8, LOCAL_RANK=0)
    assert "got rank 8 of 8" in error_message()


@pytest.mark.parametrize("values", [{"RANK": 0}, {"RANK": 0, "WORLD_SIZE": "two", "LOCAL_RANK": 0}])
def test_missing_or_non_integer_variables_are_an_error(
    launcher: pytest.MonkeyPatch, values: dict[str, object]
) -> None:
    set_all(launcher, **values)
    assert "RANK, WORLD_SIZE, LOCAL_RANK must all be set to integers" in error_message()


def test_the_backend_follows_from_the_device() -> None:
    backends = {"cpu": "gloo", "cuda": "nccl"}
    for device, backend in backends.items():
        environment = DistributedEnv(
            rank=0, world_size=1, local_rank=0, device=torch.device(device)
        )
        assert environment.backend == backend


def test_the_environment_is_read_in_one_module() -> None:
    """`cluster` records and sets variables of child processes; nothing else may look at them."""
    package = Path(armd_scale.__file__).parent
    readers = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if re.search(r"\b(os\.environ|getenv|from os import environ)\b", path.read_text())
    }
    assert {name for name in readers if not name.startswith("cluster/")} == {
        "parallel/environment.py"
    }
