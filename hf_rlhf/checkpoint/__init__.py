"""Runs that may be killed at any moment: whole checkpoints, resuming, signals, and one run to a folder."""
