"""Rewards: TRL's reward-function contract, learned reward models, and the weighted sum of several."""
