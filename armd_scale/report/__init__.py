"""A self-contained HTML page about one run, or several side by side, from their run folders."""
