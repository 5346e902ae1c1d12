"""Memory that is free now, and refusing what needs more of it before any is allocated.

Without the check a large request ends in the middle: the system kills the process without a word,
or an allocator fails in the depth of a kernel.
"""

from pathlib import Path

import psutil
import torch

from armd_scale.errors import ArmdError

_CGROUP = Path("/sys/fs/cgroup")


def available_bytes(device: torch.device | str = "cpu") -> int:
    """Return how many bytes can still be allocated on a device."""
    device = torch.device(device)
    if device.type == "cuda":
        # Memory that PyTorch holds but does not use is not free for others, but for us.
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    available = int(psutil.virtual_memory().available)
    # A container has a limit of its own, which psutil does not know.
    limit, used = _read_int("memory.max"), _read_int("memory.current")
    if limit is None or used is None:
        return available
    # Cached files count as used, and are given up when memory runs short.
    return max(0, min(available, limit - used + _cached_bytes()))


def require_memory(
    num_bytes: int | float,
    what: str,
    *,
    advice: str,
    device: torch.device | str = "cpu",
    error_class: type[ArmdError] = ArmdError,
) -> None:
    """Check that there is enough memory.

    Args:
        num_bytes: lower bound of what is needed.
        what: what needs it, for the message.
        advice: what the user can do, for the message.
        device: where it is needed.
        error_class: class of the error.

    Raises:
        ArmdError: (`error_class`) there is less.
    """
    available = available_bytes(device)
    if num_bytes > available:
        raise error_class(
            f"{what} must fit the memory that is free on {torch.device(device).type} "
            f"({available / 2**30:.1f} GiB), and needs at least {num_bytes / 2**30:.3g} GiB: "
            f"{advice}"
        )


def _read_int(name: str) -> int | None:
    try:
        return int((_CGROUP / name).read_text())
    except (OSError, ValueError):  # no cgroup of version 2, or no limit: the file says "max"
        return None


def _cached_bytes() -> int:
    try:
        lines = (_CGROUP / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    names = ("inactive_file", "active_file")
    return sum(int(line.split()[1]) for line in lines if line.split()[0] in names)
