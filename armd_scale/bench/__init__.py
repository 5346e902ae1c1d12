"""Benchmarks of speed and memory: `python tools/bench.py NAME`; figures are in README.md here."""
