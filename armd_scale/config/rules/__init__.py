"""Checks of what types cannot express: one small function per rule; `check` applies them all."""
