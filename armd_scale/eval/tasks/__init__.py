"""Evaluation tasks other than likelihood."""
