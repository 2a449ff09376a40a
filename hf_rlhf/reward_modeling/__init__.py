"""Reward models: trl's `RewardTrainer`, with what must be right around it."""
