#!/usr/bin/env bash
# bash slurm/requeue.sh STATUS SECONDS
#
# Called at the end of a batch script that ran for SECONDS and ended with STATUS: requeues the job if running
# it again helps. Statuses that are requeued:
#
# 138: SIGUSR1 was received, before the time limit or from `scancel --signal=USR1`; the checkpoint is saved.
# 75: a rank was lost or hung.
# 134, 135, 137, 139: a rank crashed or was killed (SIGABRT, SIGBUS, SIGKILL, SIGSEGV).
#
# Not requeued: jobs that Slurm requeues itself (preemption, lost nodes), jobs that a user cancelled, and jobs
# that failed with an error message (status 2).
#
# Exits with STATUS, which the batch script should exit with; with 75 if running the job again helps and Slurm
# refuses to do so.
status=$1 seconds=$2 restarts=${SLURM_RESTART_COUNT:-0}

case $status in
    138) ;;
    75 | 134 | 135 | 137 | 139)
        # Give up on a job that keeps failing within ten minutes of its start.
        [ "$seconds" -ge 600 ] || [ "$restarts" -lt 20 ] || exit "$status"
        ;;
    *) exit "$status" ;;
esac
echo "status $status: requeueing (restart $((restarts + 1)))"
if ! scontrol requeue "$SLURM_JOB_ID"; then
    # The site forbids it, or the job was submitted with --no-requeue.
    echo "job $SLURM_JOB_ID cannot be requeued; what it has saved is kept: submit the same command again to" \
        "resume, with sbatch --requeue if the site allows it"
    exit 75
fi
exit "$status"
