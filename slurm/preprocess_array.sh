#!/usr/bin/env bash
# Preprocess text into token shards on many machines: each task of the array encodes one shard of the corpus.
# Then one job merges the shards into the files that a single run would write, and verifies them:
#
#     sbatch --array=0-31 slurm/preprocess_array.sh data/web --input 'web/**/*.jsonl.zst' --tokenizer models/bpe
#
# Run it in the project's root. The first argument is the prefix of the output, the others are those of
# tools/preprocess.py. A task that was stopped, for whatever reason, continues where it was.
#SBATCH --job-name=preprocess
#SBATCH --array=0-15
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=16
#SBATCH --mem=32G
#SBATCH --time=12:00:00
#SBATCH --signal=USR1@60
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A-%a.log

source slurm/env.sh
trap 'bash slurm/requeue.sh $? $SECONDS || exit $?' EXIT

output=$1
shift
# Only the first task submits the merge, and only when it starts for the first time.
if [ "$SLURM_ARRAY_TASK_ID" = "$SLURM_ARRAY_TASK_MIN" ] && [ -z "${SLURM_RESTART_COUNT:-}" ]; then
    sbatch --dependency=afterok:"$SLURM_ARRAY_JOB_ID" --kill-on-invalid-dep=yes \
        slurm/preprocess_merge.sh "$output" "$SLURM_ARRAY_TASK_COUNT"
fi

srun "$PYTHON" tools/preprocess.py --output "$output" --workers "$SLURM_CPUS_PER_TASK" \
    --shard "$((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN))/$SLURM_ARRAY_TASK_COUNT" "$@"
