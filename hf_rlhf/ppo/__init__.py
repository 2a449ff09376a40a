"""Proximal policy optimisation with a value head, inside `transformers.Trainer`."""
