"""The quickstart: a small language model learns from feedback, end to end, on this machine."""
