#!/usr/bin/env bash
# Pretrain the 7B model on 64 GPUs, across time limits, preemptions and lost nodes:
#
#     sbatch slurm/pretrain_7b.sh [RECIPE.yaml] [section.key=value ...]
#
# Run it in the project's root. Options for other resources go first: sbatch --nodes=16 --partition=P slurm/pretrain_7b.sh
#SBATCH --job-name=pretrain_7b
#SBATCH --nodes=8
#SBATCH --gpus-per-node=8
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

# Slurm sends SIGUSR1 300 s before the time limit; the current step and a save must fit into that time. The
# job is then requeued and resumes, as often as the run needs.
source slurm/env.sh
trap 'bash slurm/requeue.sh $? $SECONDS || exit $?' EXIT

recipe=recipes/pretrain_7b.yaml
if [[ ${1:-} == *.yaml ]]; then
    recipe=$1
    shift
fi

# If one rank dies, the others log it and exit; --wait=60 kills any that cannot. --kill-on-bad-exit is off,
# because it would kill them while they log the error or save.
#
# To run in a container with enroot and pyxis, insert between srun and the interpreter:
#   --container-image=IMAGE.sqsh --container-mounts="$PWD" --container-workdir="$PWD"
srun --kill-on-bad-exit=0 --wait=60 --output="$LOG" --open-mode=append \
    "$PYTHON" -m armd_scale.train "$recipe" "$@"
