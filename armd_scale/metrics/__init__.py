"""Writers of training metrics."""
