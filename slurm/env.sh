# shellcheck shell=bash
# Sourced by the batch scripts of this folder, which are submitted from the project's root: Slurm runs a
# copy of them from elsewhere. Nothing here says where processes meet: the program reads that from
# Slurm's variables (armd_scale/parallel/environment.py).
set -u

PYTHON=${PYTHON:-.venv/bin/python}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1

# One file a process, in which restarts follow one another: job name, job, process.
mkdir -p logs
export LOG=logs/%x-%j-%t.log
