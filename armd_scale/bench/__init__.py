"""Figures that the README states, each measured by one command: `tools/bench.py`."""
