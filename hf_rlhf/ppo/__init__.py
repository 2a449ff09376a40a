"""Proximal policy optimization with a value head, inside `transformers.Trainer`."""
