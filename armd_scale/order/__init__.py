"""Orders of generation: policies, draws, and what they make visible. Pure functions, no torch."""
