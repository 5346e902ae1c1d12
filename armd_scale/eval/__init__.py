"""Likelihood of text under an order, tasks, lm-evaluation-harness, the papers' tables."""
