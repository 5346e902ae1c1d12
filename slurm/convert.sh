#!/usr/bin/env bash
# Turns pretrained AR weights into a checkpoint to train on from; one process, mostly memory:
#
#     sbatch slurm/convert.sh --hf models/llama-3.1-8b --output checkpoints/llama-3.1-8b
#
# From the project's root. Arguments are those of tools/convert_ar_to_armd.py, which checks that the
# network still computes what the AR model does, and fails where it does not.
#SBATCH --job-name=convert
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=16
#SBATCH --mem=128G
#SBATCH --time=02:00:00
#SBATCH --output=%x-%j.log

source slurm/env.sh

srun --output="$LOG" "$PYTHON" tools/convert_ar_to_armd.py "$@"
