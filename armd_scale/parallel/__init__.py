"""Where a run lives: launcher's environment, process groups, schedule, CPU stand-in for CUDA."""
