"""Adapter that makes a model available to lm-evaluation-harness."""
