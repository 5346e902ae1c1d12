"""Benchmarks, one module each; armd_scale/bench/cli.py registers them as subcommands."""
