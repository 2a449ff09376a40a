"""Faster ways to the same numbers: packed attention, fused LoRA, the frozen trunk, compiled blocks, the KV cache."""
