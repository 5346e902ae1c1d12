"""The tables of the ARMD paper, for one's own checkpoints."""
