"""Adapt a small Llama into an ARMD and measure the cost."""
