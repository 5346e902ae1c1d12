"""Preprocessing: read a corpus, split it into work units, encode them, join the results."""
