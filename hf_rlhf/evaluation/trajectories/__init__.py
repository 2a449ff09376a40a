"""The trajectories that a PPO run wrote, for people: in a terminal and as a page, with numbers as colors."""
