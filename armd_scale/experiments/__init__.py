"""Experiments behind the figures of the documentation."""
