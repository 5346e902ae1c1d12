"""Checks that types cannot express, one function a rule."""
