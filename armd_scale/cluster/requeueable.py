"""Work that submitit starts again after a time limit or a preemption.

submitit announces both by a signal, upon which it asks the work for what to run next
(`checkpoint`), puts the job back into the queue and ends the process at once. Training answers the
same signal by finishing its step and saving, which takes a while. So it goes first, and hands the
signal on when it is done.
"""

import os
import signal
import sys
from collections.abc import Callable

import submitit

from armd_scale.errors import ArmdError


class RequeueableTask:
    """Calls `run` as submitit's task does, again and again until it ends by itself.

    Args:
        run: does the work and resumes what it finds unfinished; returns an exit status, 128 + the
            signal's number where one stopped it. Pickled by its name.
    """

    def __init__(self, run: Callable[[], int]) -> None:
        self.run = run

    def __call__(self) -> None:
        """Runs; a status other than 0 becomes the process's, and submitit's way of requeueing."""
        _export_torchrun_env()
        try:
            status = self.run()
        except ArmdError as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from None
        if status == 128 + _preempt_signal():
            signal.raise_signal(_preempt_signal())  # does not return on the task that requeues
        if status != 0:
            raise SystemExit(status)

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """What to run after requeueing: the same, which resumes."""
        return submitit.helpers.DelayedSubmission(self)


def _preempt_signal() -> signal.Signals:
    """The signal by which submitit announces that the job must end."""
    return signal.Signals[f"SIG{submitit.JobEnvironment.USR_SIG}"]


def _export_torchrun_env() -> None:
    """Describes a job on this machine as torchrun would; srun describes its own."""
    here = submitit.JobEnvironment()
    if here.cluster != "local":
        return
    place = {
        "RANK": here.global_rank,
        "WORLD_SIZE": here.num_tasks,
        "LOCAL_RANK": here.local_rank,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": 10_000 + int(here.job_id) % 20_000,
    }
    os.environ.update({name: str(value) for name, value in place.items()})
