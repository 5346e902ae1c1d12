# shellcheck shell=bash
# Sourced by the batch scripts of this folder. Paths are relative to the project's root, where the scripts
# are submitted, because Slurm runs a copy of them from another folder. The rendezvous address needs no
# variable here: the program derives it from Slurm's own variables (armd_scale/parallel/environment.py).
set -u

PYTHON=${PYTHON:-.venv/bin/python}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1

# Since Slurm 22.05 srun does not take over the CPUs per task of the batch script: each process would have one.
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then
    export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
fi

# One log file per process (job name, job, rank), to which restarts are appended.
mkdir -p logs
export LOG=logs/%x-%j-%t.log
