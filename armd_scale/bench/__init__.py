"""Figures and experiments of the README, each repeated by one command: `tools/bench.py`."""
