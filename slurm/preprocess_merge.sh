#!/usr/bin/env bash
# Joins the parts that preprocess_array.sh left and verifies the whole. That script submits this one; by
# hand, for parts that are there already:
#
#     sbatch slurm/preprocess_merge.sh data/web 32
#
#SBATCH --job-name=preprocess_merge
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=2
#SBATCH --mem=8G
#SBATCH --time=12:00:00
#SBATCH --output=%x-%j.log

source slurm/env.sh
set -e

output=$1 count=$2
parts=()
for ((part = 0; part < count; part++)); do
    parts+=("$output.shard-$part-of-$count")
done

srun "$PYTHON" tools/preprocess.py --output "$output" --merge "${parts[@]}"
srun "$PYTHON" tools/preprocess.py --verify "$output"
