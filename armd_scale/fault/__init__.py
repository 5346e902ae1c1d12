"""Failure detection: dead and hung ranks, stack dumps, and stop signals."""
