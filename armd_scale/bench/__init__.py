"""Experiments and measurements that a reader can repeat with one command."""
