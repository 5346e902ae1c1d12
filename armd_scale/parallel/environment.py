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
# job and step, so that two of them on one node do not meet. The stride has no factor in common with
# the range, and is far from 0 in it: the steps of a job do not meet those of the next jobs.
SLURM_PORT_BASE, SLURM_PORT_RANGE, SLURM_STEP_STRIDE = 10_000, 20_000, 7_919


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
    master_port: int | None = None
    """Port at which the processes meet (MASTER_PORT); None: not set, or no integer."""
    has_agent_store: bool = False
    """Whether a process of torchrun listens there, and not rank 0."""

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

    It also is in a shell that `srun --pty` or `salloc` has started, however many tasks that has.

    Also sets DS_ACCELERATOR and LOCAL_RANK for DeepSpeed, and MASTER_ADDR and MASTER_PORT under
    srun, unless they are set already.

    Raises:
        TrainingError: a variable is missing, not an integer, or the rank is out of range.
    """
    ranks = _read_ints("RANK", "WORLD_SIZE", "LOCAL_RANK")
    # An sbatch script has a SLURM_PROCID as well, but only processes of srun are in a step.
    is_in_step = "SLURM_STEP_NUM_TASKS" in os.environ and not _is_interactive_shell()
    if ranks is None and is_in_step:
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
    port = os.environ.get("MASTER_PORT", "")
    return DistributedEnv(
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        device=device,
        host=socket.gethostname(),
        master_addr=os.environ.get("MASTER_ADDR", "localhost"),
        master_port=int(port) if port.isdecimal() else None,
        has_agent_store=os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
    )


def set_default_variables(**defaults: str) -> dict[str, str]:
    """Set environment variables that libraries read, unless the user has; return their values."""
    return {name: os.environ.setdefault(name, value) for name, value in defaults.items()}


def _is_interactive_shell() -> bool:
    """Whether this process was started from a shell of `srun --pty`.

    Such a shell has the variables of task 0 of its step, whose other tasks have no terminal and
    have ended. A step that is started from the shell inherits the variable, but not the terminal.
    """
    if "SLURM_PTY_PORT" not in os.environ:
        return False
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _set_rendezvous_from_slurm() -> None:
    """Set the rendezvous of torch.distributed to the first host of the Slurm step."""
    host = first_slurm_host(os.environ["SLURM_STEP_NODELIST"])
    job, step = int(os.environ["SLURM_JOB_ID"]), int(os.environ.get("SLURM_STEP_ID", "0"))
    port = SLURM_PORT_BASE + (job + step * SLURM_STEP_STRIDE) % SLURM_PORT_RANGE
    set_default_variables(MASTER_ADDR=_resolvable_address(host), MASTER_PORT=str(port))


def first_slurm_host(node_list: str) -> str:
    """Return the first host of a Slurm node list, as `scontrol show hostnames` would.

    >>> first_slurm_host("rack[0-1]gpu[08-11,15],login")
    'rack0gpu08'
    """
    # Commas inside of brackets separate numbers, the first other one ends the first host.
    match = re.match(r"(?:[^,\[]|\[[^\]]*\])+", node_list)
    assert match is not None, node_list
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", match.group())


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
