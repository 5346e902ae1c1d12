"""Tensor-parallel partitioning and gradient reduction."""
