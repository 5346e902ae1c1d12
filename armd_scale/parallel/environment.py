"""Launch environment: rank, world size, device and rendezvous address of this process.

torchrun and srun describe a job in environment variables. They are read here, once, into one typed
value; the rest of the package does not read the environment (`cluster`, which records it, aside).
srun sets the ranks but no rendezvous address, so that is derived from the job's first host and ID.
"""

import os
import re
import socket
from dataclasses import dataclass

import torch

from armd_scale.errors import TrainingError

# Rendezvous ports of Slurm jobs: below the ephemeral ports (32768 and up on Linux), and spread by
# job ID, so that two jobs on one node do not meet.
SLURM_PORT_BASE, SLURM_PORT_RANGE = 10_000, 20_000


@dataclass(frozen=True, kw_only=True)
class DistributedEnv:
    """This process within the job."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    host: str = "localhost"
    """Name of the machine, for messages."""
    master_addr: str = "localhost"
    """Address of rank 0 (MASTER_ADDR)."""

    @property
    def is_rank0(self) -> bool:
        """Whether this process prints and writes the shared files."""
        return self.rank == 0

    @property
    def backend(self) -> str:
        """The torch.distributed backend for the device."""
        return "nccl" if self.device.type == "cuda" else "gloo"


def read_environment() -> DistributedEnv:
    """Read this process's rank from torchrun's variables, else Slurm's; else it is the only one.

    Also sets DS_ACCELERATOR and LOCAL_RANK for DeepSpeed, and MASTER_ADDR and MASTER_PORT under
    srun, unless they are set already.

    Raises:
        TrainingError: a variable is missing, not an integer, or the rank is out of range.
    """
    ranks = _read_ints("RANK", "WORLD_SIZE", "LOCAL_RANK")
    # An sbatch script has a SLURM_PROCID as well, but only processes of srun are in a step.
    if ranks is None and "SLURM_STEP_NUM_TASKS" in os.environ:
        ranks = _read_ints("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
        _set_rendezvous_from_slurm()
    rank, world_size, local_rank = ranks or (0, 1, 0)
    if not 0 <= rank < world_size:
        raise TrainingError(
            f"the rank must be below the world size (got rank {rank} of {world_size}): "
            "start with torchrun or srun, or unset RANK and WORLD_SIZE"
        )
    # A scheduler may show each process its own GPU only; that GPU has index 0 in every process.
    num_gpus = torch.cuda.device_count()
    device_index = local_rank % num_gpus if num_gpus else local_rank
    device = torch.device("cuda", device_index) if num_gpus else torch.device("cpu")
    # DeepSpeed reads the accelerator while it is imported, and the local rank in `initialize`,
    # where it fails without the variable; srun does not set it.
    set_default_variables(DS_ACCELERATOR=device.type, LOCAL_RANK=str(device_index))
    return DistributedEnv(
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        device=device,
        host=socket.gethostname(),
        master_addr=os.environ.get("MASTER_ADDR", "localhost"),
    )


def set_default_variables(**defaults: str) -> dict[str, str]:
    """Set environment variables that libraries read, unless the user has; return their values."""
    return {name: os.environ.setdefault(name, value) for name, value in defaults.items()}


def _set_rendezvous_from_slurm() -> None:
    """Set the rendezvous of torch.distributed to the first host of the Slurm step."""
    host = first_slurm_host(os.environ["SLURM_STEP_NODELIST"])
    port = SLURM_PORT_BASE + int(os.environ["SLURM_JOB_ID"]) % SLURM_PORT_RANGE
    set_default_variables(MASTER_ADDR=_resolvable_address(host), MASTER_PORT=str(port))


def first_slurm_host(node_list: str) -> str:
    """Return the first host of a Slurm node list, as `scontrol show hostnames` would.

    >>> first_slurm_host("gpu[08-11,15],login")
    'gpu08'
    """
    match = re.match(r"([^,\[]+)(?:\[(\w+)[^\]]*\])?([^,\[]*)", node_list)
    assert match is not None, node_list
    return "".join(group or "" for group in match.groups())


def _resolvable_address(host: str) -> str:
    """Return the host if its name resolves, else the address that srun was started from.

    Node names need not be in the DNS. Within a batch job srun runs on the first node, so its
    address is the same machine.
    """
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return os.environ.get("SLURM_LAUNCH_NODE_IPADDR", host)
    return host


def _read_ints(*names: str) -> tuple[int, ...] | None:
    """Return the integer values of environment variables, or None if the first is not set."""
    if names[0] not in os.environ:
        return None
    try:
        return tuple(int(os.environ[name]) for name in names)
    except (KeyError, ValueError) as error:
        raise TrainingError(
            f"{', '.join(names)} must all be set to integers (got {error}): "
            "start with torchrun or srun, or unset them all"
        ) from error


def slurm_job() -> tuple[str | None, int | None]:
    """Return the Slurm job of this process and how often Slurm has started it again, or nothing."""
    job = os.environ.get("SLURM_JOB_ID")
    restarts = os.environ.get("SLURM_RESTART_COUNT", "0")
    return job, int(restarts) if job and restarts.isdecimal() else None
