"""What the training loop calls after every step: progress and metrics, evaluation, checkpoints."""
