"""Tensor parallelism: partition of parameters and reduction of partial gradients."""
