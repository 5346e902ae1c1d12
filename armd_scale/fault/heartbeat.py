"""What is said about processes of a job: what they are doing, and what became of them."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

PREFIX = "every process of the job must live until its end, and "


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """What a process is doing."""

    phase_index: int = 0
    """How many things it has begun; equal on all processes that are equally far."""
    phase: str = "starting"
    """The latest of them, in words."""
    seconds: float = 0.0
    """How long ago it began that."""


@runtime_checkable
class HeartbeatSource(Protocol):
    """What this process is doing, for those who wait for it."""

    @property
    def hang_timeout_seconds(self) -> float:
        """How long it may do the same thing; 0: as long as it likes."""
        ...

    def heartbeat(self) -> Heartbeat:
        """What it is doing now; asked for by another thread."""
        ...

    def dump_stacks(self) -> None:
        """Writes down where its threads are; called when some process hangs."""
        ...


def beat_interval(hang: float) -> float:
    """Seconds between beats where a process may hang for `hang` seconds."""
    return min(5.0, hang / 5)


def peer_lost_message(who: str) -> str:
    """The sentence about a process that ended without a word."""
    return (
        f"{PREFIX}{who} is gone (killed, out of memory, or its machine lost): run the same "
        "command again to continue from the last checkpoint"
    )


def peer_failed_message(who: str, error: str) -> str:
    """The sentence about a process that ended with an error of its own."""
    return (
        f"{PREFIX}{who} failed with {error}: mend what its own message tells, then run the "
        "same command again to continue from the last checkpoint"
    )


def peer_hung_message(who: str, doing: str, seconds: float) -> str:
    """The sentence about a process that lives and does not get on."""
    return (
        f"every process of the job must get on with its work, and {who} has been {doing} for "
        f"{seconds:.0f} s, longer than train.hang_timeout_seconds allows: see its stack in the run's "
        "folder, then run the same command again to continue from the last checkpoint"
    )
