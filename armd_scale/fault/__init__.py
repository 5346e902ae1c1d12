"""Notice ranks that died or hang, and stop signals."""
