"""What a recipe will cost on a number of GPUs: memory, operations, messages, time; no torch."""
