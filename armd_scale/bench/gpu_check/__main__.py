"""`python -m armd_scale.bench.gpu_check`: what tools/gpu_check.sh runs."""

from armd_scale.bench.gpu_check.cli import main
from armd_scale.errors import run_command

if __name__ == "__main__":
    run_command(main)
