#!/usr/bin/env bash
# Merge the shards that preprocess_array.sh has written, and verify the result. That script submits this one.
# To run it by hand for existing shards, in the project's root:
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
shards=()
for ((i = 0; i < count; i++)); do
    shards+=("$output.shard-$i-of-$count")
done

srun "$PYTHON" tools/preprocess.py --output "$output" --merge "${shards[@]}"
srun "$PYTHON" tools/preprocess.py --verify "$output"
