"""Estimate what a recipe costs on a number of GPUs: memory, FLOPs, communication, time."""
