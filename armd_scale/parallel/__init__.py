"""Where a run lives: the launcher's environment, process groups, schedule, and the CPU stand-in for CUDA."""
