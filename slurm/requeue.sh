#!/usr/bin/env bash
# bash slurm/requeue.sh STATUS SECONDS: puts the job whose batch script runs this back into the queue,
# where it ended with STATUS after SECONDS and starting it again helps.
#
# 138: SIGUSR1 came, before the time limit or from `scancel --signal=USR1`, and the run is saved.
# 75: a process was lost or hung. 134, 135, 137, 139: one was killed or crashed. What Slurm starts again by
# itself (preemption, lost nodes), what a user cancelled and what failed with a sentence (2) is left alone.
status=$1 seconds=$2 restarts=${SLURM_RESTART_COUNT:-0}

case $status in
    138) ;;
    75 | 134 | 135 | 137 | 139)
        # A job that fails each time as soon as it starts is given up.
        [ "$seconds" -ge 600 ] || [ "$restarts" -lt 20 ] || exit 0
        ;;
    *) exit 0 ;;
esac
echo "status $status: starting again (restart $((restarts + 1)))"
scontrol requeue "$SLURM_JOB_ID"
