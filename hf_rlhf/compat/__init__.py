"""TRL's names of metrics, flags and classes, for users who come from TRL."""
