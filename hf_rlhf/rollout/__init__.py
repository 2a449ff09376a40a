"""Sampling completions: what to sample, the engines that do it, and their results as trajectories."""
