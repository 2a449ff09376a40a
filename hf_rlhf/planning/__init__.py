"""The needs of a run before it starts: work, memory and time of each phase."""
