#!/usr/bin/env bash
# Does everything run on this GPU, and how fast: libraries, kernels, training, steps, decoding,
# saves, tests. Eight minutes on one GPU; `--dry` runs the same sections at tiny sizes on CPU.
# Uses $PYTHON, .venv/bin/python (as slurm/*.sh do) or else python3, the first that can import torch,
# so that no network is needed; if none can, sets up .venv like tools/test.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

find_python_with_torch() {
    local candidate
    for candidate in "${PYTHON:-}" .venv/bin/python python3 python; do
        if [ -n "$candidate" ] && "$candidate" -c 'import torch, megatron.core, deepspeed' >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
}

PYTHON="$(find_python_with_torch)"
[ -n "$PYTHON" ] || source tools/environment.sh
case " $* " in *" --dry "*) export CUDA_VISIBLE_DEVICES= ;; esac
export TOKENIZERS_PARALLELISM=false PYTHONWARNINGS=ignore PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec "$PYTHON" -m armd_scale.bench.gpu_check "$@"
