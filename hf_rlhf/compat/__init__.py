"""What TRL called things, for those who come from there."""
