#!/usr/bin/env bash
# Does everything run on this GPU, and how fast: libraries, kernels, training, steps, decoding,
# saves, tests. Eight minutes on one GPU; `--dry` runs the same sections at tiny sizes on CPU.
# Runs $PYTHON if it is set, else .venv/bin/python (as slurm/*.sh do), else a python3 that has torch, so
# that no network is needed; without any of them sets up .venv like tools/test.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Asks for torch alone: of other libraries that cannot be imported, the check itself says why.
if [ -z "${PYTHON:-}" ]; then
    if [ -x .venv/bin/python ]; then
        PYTHON=.venv/bin/python
    elif python3 -c 'import torch' >/dev/null 2>&1; then
        PYTHON=python3
    else
        source tools/environment.sh
    fi
fi
case " $* " in *" --dry "*) export CUDA_VISIBLE_DEVICES= ;; esac
export TOKENIZERS_PARALLELISM=false PYTHONWARNINGS=ignore PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec "$PYTHON" -m armd_scale.bench.gpu_check "$@"
