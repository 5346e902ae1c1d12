"""A submitit task that is requeued after a time limit or preemption until it finishes.

submitit announces both with a signal. Its own handler asks the task what to run next
(`checkpoint`), requeues the job and ends the process immediately. Training reacts to the same
signal by finishing its step and saving a checkpoint, which takes a while. So training handles the
signal first, and the task raises it again for submitit when training is done.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable

import submitit

from armd_scale.errors import ArmdError
from armd_scale.fault.peer_monitor import EXIT_PEER_LOST as EXIT_RESUMABLE


class RequeueableTask:
    """A task that runs again after every requeue until it finishes by itself.

    Args:
        run: does the work, and resumes if an earlier run left it unfinished. Returns an exit
        status:
            128 + the signal's number if a signal stopped it. It is pickled by its name.
    """

    def __init__(self, run: Callable[[], int]) -> None:
        self.run = run

    def __call__(self) -> None:
        """Run the task in a process of the job.

        Raises:
            SystemExit: with the status of the task, if it is not 0.
        """
        _export_torchrun_env()
        try:
            status = self.run()
        except ArmdError as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from None
        if status == 128 + _preempt_signal():
            # submitit's handler requeues the job and exits; only the task of rank 0 does this. In
            # the other tasks the handler returns, and they exit with the status below.
            try:
                signal.raise_signal(_preempt_signal())
            except (subprocess.CalledProcessError, OSError) as error:  # of scontrol requeue
                print(
                    f"this job cannot be requeued ({error}); what it has saved is kept: submit the "
                    "same command again to resume",
                    file=sys.stderr,
                )
                raise SystemExit(EXIT_RESUMABLE) from None
        if status != 0:
            raise SystemExit(status)

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """Return what submitit runs after the requeue: the same task, which resumes."""
        return submitit.helpers.DelayedSubmission(self)


def _preempt_signal() -> signal.Signals:
    """Return the signal with which submitit announces that the job must end."""
    return signal.Signals[f"SIG{submitit.JobEnvironment.USR_SIG}"]


def _export_torchrun_env() -> None:
    """Set the variables that torchrun would set, for a job on this machine.

    On Slurm srun has set its own variables, which the program reads.
    """
    environment = submitit.JobEnvironment()
    if environment.cluster != "local":
        return
    variables = {
        "RANK": environment.global_rank,
        "WORLD_SIZE": environment.num_tasks,
        "LOCAL_RANK": environment.local_rank,
        "MASTER_ADDR": "127.0.0.1",
        # All processes of a job must agree on a port, and concurrent jobs must differ.
        "MASTER_PORT": 10_000 + int(environment.job_id) % 20_000,
    }
    os.environ.update({name: str(value) for name, value in variables.items()})
