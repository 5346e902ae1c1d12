"""What the launcher says: which process this is, of how many, and where they meet.

torchrun and srun describe a job in environment variables. They are read here, once, into one typed
value; nothing else in the package looks at the environment to learn about the job. srun says where
its processes are but not where they meet; that follows from the job's first node and its number.
"""

import os
import re
import socket
from dataclasses import dataclass

import torch

from armd_scale.errors import TrainingError


@dataclass(frozen=True, kw_only=True)
class DistributedEnv:
    """One process's place in the job."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    host: str = "localhost"
    """Name of the machine, for messages."""
    master_addr: str = "localhost"
    """Where rank 0 can be reached."""

    @property
    def is_rank0(self) -> bool:
        """Whether this process speaks for the job (prints, writes the shared files)."""
        return self.rank == 0

    @property
    def backend(self) -> str:
        """The torch.distributed backend that serves the device."""
        return "nccl" if self.device.type == "cuda" else "gloo"


def read_environment() -> DistributedEnv:
    """This process's place: torchrun's variables, else Slurm's, else a job of one process.

    Raises:
        TrainingError: the launcher's variables contradict one another.
    """
    place = _read_ints("RANK", "WORLD_SIZE", "LOCAL_RANK")
    # A batch script has a SLURM_PROCID too; only what srun started is in a step.
    if place is None and "SLURM_STEP_NUM_TASKS" in os.environ:
        place = _read_ints("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
        _set_rendezvous_from_slurm()
    rank, world_size, local_rank = place or (0, 1, 0)
    if not 0 <= rank < world_size:
        raise TrainingError(
            f"the launcher must give a rank below the world size, got rank {rank} of {world_size}: "
            "start through torchrun or srun, or unset RANK and WORLD_SIZE"
        )
    # Where a scheduler shows each process its own GPU alone, that one is number 0.
    gpus = torch.cuda.device_count()
    number = local_rank % gpus if gpus else local_rank
    device = torch.device("cuda", number) if gpus else torch.device("cpu")
    # DeepSpeed reads both for itself: the accelerator as it is imported, the local rank as an
    # engine is made, which only torchrun sets.
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    os.environ.setdefault("LOCAL_RANK", str(number))
    return DistributedEnv(
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        device=device,
        host=socket.gethostname(),
        master_addr=os.environ.get("MASTER_ADDR", "localhost"),
    )


def _set_rendezvous_from_slurm() -> None:
    """Sets where torch.distributed meets, unless the user has."""
    nodes = os.environ["SLURM_STEP_NODELIST"]
    os.environ.setdefault("MASTER_ADDR", _address(first_slurm_host(nodes)))
    # Below the ports that systems hand out, and another one for each job that shares a node.
    port = 10_000 + int(os.environ["SLURM_JOB_ID"]) % 20_000
    os.environ.setdefault("MASTER_PORT", str(port))


def first_slurm_host(nodes: str) -> str:
    """The first name of Slurm's short form, as `scontrol show hostnames` gives it: gpu[08-11],x."""
    found = re.match(r"([^,\[]+)(?:\[(\w+)[^\]]*\])?([^,\[]*)", nodes)
    assert found is not None, nodes
    return "".join(part or "" for part in found.groups())


def _address(node: str) -> str:
    """A node's name where it can be looked up, else where srun ran: in a batch job that node."""
    try:
        socket.getaddrinfo(node, None)
    except OSError:
        return os.environ.get("SLURM_LAUNCH_NODE_IPADDR", node)
    return node


def enable_determinism(device: torch.device) -> str:
    """Has this process compute the same bits from the same inputs; to be called before it starts.

    On CPU that was so already, at a fixed number of threads. On CUDA kernels that add in an order
    of their own are replaced by slower ones, or refused by an error where there is no other:

    * cuBLAS gets workspaces of one fixed size, and cuDNN does not choose kernels by timing them;
    * NCCL reduces along rings, whose order the layout decides, instead of what it finds fastest;
    * attention: the flash kernel's backward adds in a fixed order under this mode, and the
      memory-efficient one does not split keys; cuDNN's makes no such promise and is switched off.
      FlexAttention, which serves larger blocks, has no atomic additions in its backward kernels.

    The promise is for one layout on one kind of device with one set of libraries: another layout
    adds in another order, and agrees to rounding. On CUDA it costs speed, most of it in attention's
    backward pass.

    Returns:
        What was chosen, in words.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ.setdefault("NCCL_ALGO", "Ring")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cuda.enable_cudnn_sdp(False)
    if device.type == "cpu":
        return "deterministic: attention by PyTorch's CPU kernels"
    enabled = {
        "flash": torch.backends.cuda.flash_sdp_enabled(),
        "memory-efficient": torch.backends.cuda.mem_efficient_sdp_enabled(),
        "math": torch.backends.cuda.math_sdp_enabled(),
    }
    kernels = ", ".join(name for name, is_enabled in enabled.items() if is_enabled)
    return (
        f"deterministic: causal attention by the first kernel that fits of {kernels}; other "
        f"attention by FlexAttention; cuBLAS {os.environ['CUBLAS_WORKSPACE_CONFIG']}, "
        f"NCCL {os.environ['NCCL_ALGO']}"
    )


def _read_ints(*names: str) -> tuple[int, ...] | None:
    """The integers under `names`, or None where the first of them is not set."""
    if names[0] not in os.environ:
        return None
    try:
        return tuple(int(os.environ[name]) for name in names)
    except (KeyError, ValueError) as error:
        raise TrainingError(
            f"the launcher must set {', '.join(names)} to integers, got {error}: "
            "start through torchrun or srun, or unset them all"
        ) from error
