"""Checks of what types cannot express: one small function per rule, `check` to apply all of them."""
