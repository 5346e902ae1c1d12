#!/usr/bin/env bash
# Trains on from the weights that a recipe's model.init_from names, on a node of 8 GPUs:
#
#     sbatch slurm/finetune.sh [RECIPE.yaml] [section.key=value ...]
#
# From the project's root. Other resources go before the script: sbatch --nodes=2 --partition=P slurm/finetune.sh
#SBATCH --job-name=finetune
#SBATCH --nodes=1
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

# SIGUSR1 comes 300 s before the time limit: the step in hand and a save must fit. The job then goes back
# to the queue and resumes, for as many limits as the run needs.
source slurm/env.sh
trap 'bash slurm/requeue.sh $? $SECONDS' EXIT

recipe=recipes/armd_125m_owt_strided.yaml
if [[ ${1:-} == *.yaml ]]; then
    recipe=$1
    shift
fi

# Processes that lose another one end by themselves, with a sentence; --wait ends those that cannot.
# --kill-on-bad-exit would end them in the middle of that, or of saving.
#
# In a container of enroot and pyxis, between srun and the interpreter:
#   --container-image=IMAGE.sqsh --container-mounts="$PWD" --container-workdir="$PWD"
srun --kill-on-bad-exit=0 --wait=60 --output="$LOG" --open-mode=append \
    "$PYTHON" -m armd_scale.train "$recipe" "$@"
