#!/usr/bin/env bash
# Does everything run on this GPU, and how fast: libraries, kernels, training, steps, decoding,
# saves, tests. Eight minutes on one GPU; `--dry` runs the same sections at tiny sizes on CPU.
# Uses the python at hand if it can import torch (a cluster's own environment, PYTHONPATH), so that
# no network is needed; otherwise sets up .venv like tools/test.sh.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON="$(command -v python3 || command -v python || true)"
if [ -z "$PYTHON" ] || ! "$PYTHON" -c 'import torch, megatron.core, deepspeed' 2>/dev/null; then
    source tools/environment.sh
fi
case " $* " in *" --dry "*) export CUDA_VISIBLE_DEVICES= ;; esac
export TOKENIZERS_PARALLELISM=false PYTHONWARNINGS=ignore PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec "$PYTHON" -m armd_scale.bench.gpu_check "$@"
