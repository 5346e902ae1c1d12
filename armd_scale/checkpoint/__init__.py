"""Checkpoint folders: whole or absent, checked when read, and free of the layout that wrote them."""
