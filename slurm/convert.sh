#!/usr/bin/env bash
# Convert pretrained AR weights into a checkpoint that training can start from; one process, mostly memory:
#
#     sbatch slurm/convert.sh --hf models/llama-3.1-8b --output checkpoints/llama-3.1-8b
#
# Run it in the project's root. The arguments are those of tools/convert_ar_to_armd.py, which checks that the
# network computes the same as the AR model, and fails if it does not.
#SBATCH --job-name=convert
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=16
#SBATCH --mem=128G
#SBATCH --time=02:00:00
#SBATCH --output=%x-%j.log

source slurm/env.sh

srun --output="$LOG" "$PYTHON" tools/convert_ar_to_armd.py "$@"
