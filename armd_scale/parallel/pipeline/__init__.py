"""Pipeline parallelism: partition of layers, schedule, and point-to-point communication."""
