"""The lm-evaluation-harness adapter."""
