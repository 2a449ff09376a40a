"""The doctor: what is wrong with a PPO run, by its numbers, and what to change."""
