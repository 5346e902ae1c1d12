"""Heartbeats, the outcome that ends a job, and the messages for lost, failed and hung ranks."""

from dataclasses import dataclass

RERUN = "rerun the same command to resume from the last checkpoint"


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """The current phase of a rank, as it is sent to rank 0."""

    phase_index: int = 0
    """Number of phases started so far; equal on all ranks that have made the same progress."""
    phase: str = "starting"
    """Name of the current phase, with its step if it has one."""
    seconds_in_phase: float = 0.0
    """Time since the current phase started."""


@dataclass(frozen=True, kw_only=True)
class JobOutcome:
    """Rank 0's final message to every rank: the job is over, or it has failed."""

    failure: str | None = None
    """Message that names the failed rank; None if all ranks have finished."""
    is_gone: bool = False
    """Whether the failed rank died or hangs, so that it cannot log an error of its own."""
    is_hung: bool = False
    """Whether the failed rank is still alive, so that stack traces of all ranks are useful."""


def heartbeat_interval(hang_timeout_seconds: float) -> float:
    """Return the seconds between heartbeats: 5 at most, and at least five of them per timeout."""
    return min(5.0, hang_timeout_seconds / 5)


def peer_lost_message(name: str) -> str:
    """Return the message for a rank whose process ended without reporting an error.

    Args:
        name: the rank with its process and host, such as "rank 3 (process 812 on node07)".
    """
    return f"{name} is gone (killed, out of memory, or its machine is down): {RERUN}"


def peer_failed_message(name: str, error: str) -> str:
    """Return the message for a rank that reported an error before it ended."""
    return f"{name} failed: {error.rstrip('.')}. Fix the error above, then {RERUN}"


def peer_hung_message(name: str, phase: str, seconds: float) -> str:
    """Return the message for a rank that is alive but makes no progress."""
    return (
        f"{name} has been in phase '{phase}' for {seconds:.0f} s, longer than "
        f"train.hang_timeout_seconds: see stacks/ in the run folder, then {RERUN}"
    )
