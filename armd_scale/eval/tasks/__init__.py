"""Evaluation tasks: LAMBADA, infilling, generative perplexity."""
