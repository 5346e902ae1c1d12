"""Checkpoints: atomic folders, verified on reading, independent of the layout that wrote them."""
