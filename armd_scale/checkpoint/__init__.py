"""Checkpoint folders: whole or absent, checked when read, free of the layout that wrote them."""
