"""A limit of what this process may allocate, for libraries that trust the sizes in a file.

The Arrow library allocates what a header says, and the data behind it may really expand to that
much: a file of 64 KB can hold a batch of 2 GiB, and one of 10 MB a batch of hundreds. No option of
the library bounds it, but the system does: above the limit its allocations fail with an error.
"""

import resource
from collections.abc import Generator
from contextlib import contextmanager

import psutil


def allocated_bytes() -> int | None:
    """Return how much this process has allocated; None where the system does not say (macOS)."""
    return getattr(psutil.Process().memory_info(), "data", None)


@contextmanager
def limit_allocations(max_bytes: int, *, base_bytes: int | None) -> Generator[None, None, None]:
    """Let allocations of this process fail where they would sum to more than a limit.

    They fail as if the system had no more memory: with an error of the library that allocates.

    Args:
        max_bytes: bytes in addition to `base_bytes`, of all threads of the process.
        base_bytes: `allocated_bytes()` at a time of the caller's choice; None: no limit.
    """
    if base_bytes is None:
        yield
        return
    soft_limit, hard_limit = resource.getrlimit(resource.RLIMIT_DATA)
    limits = [value for value in (soft_limit, hard_limit) if value != resource.RLIM_INFINITY]
    limit = min([base_bytes + max_bytes, *limits])
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard_limit))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft_limit, hard_limit))
