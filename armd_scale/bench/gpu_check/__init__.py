"""Does everything run on this GPU, and how fast: `bash tools/gpu_check.sh`, eight minutes."""
