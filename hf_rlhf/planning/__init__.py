"""What a run will need, before it is started: work, memory and time of each phase."""
