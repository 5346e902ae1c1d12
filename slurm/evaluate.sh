#!/usr/bin/env bash
# Compute the likelihood of held-out text under one order; the ranks share the windows:
#
#     sbatch slurm/evaluate.sh --checkpoint runs/pretrain_1b --data data/web_valid --order strided:4 --json l4.json
#
# Run it in the project's root. The arguments are those of tools/evaluate.py.
#SBATCH --job-name=evaluate
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=02:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

source slurm/env.sh
trap 'bash slurm/requeue.sh $? $SECONDS || exit $?' EXIT

srun --kill-on-bad-exit=0 --wait=60 --output="$LOG" --open-mode=append "$PYTHON" tools/evaluate.py "$@"
