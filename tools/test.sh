#!/usr/bin/env bash
# Runs the tests on a fresh machine; arguments go to pytest: bash tools/test.sh tests/model -k causal
source "$(dirname "$0")/environment.sh"
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
exec "$PYTHON" -m pytest "$@"
