"""Sampling settings and their random numbers."""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from hf_rlhf.errors import InputError


@dataclass(frozen=True, slots=True)
class Sampling:
    """Settings that completions are drawn with. `temperature=0` is greedy.

    The first `first_greedy_tokens` tokens of a completion are the likeliest ones, and the others are drawn. The policy
    has no choice among the first, so they are never learned from: see `chosen`.
    """

    max_completion_length: int = 64
    temperature: float = 1.0
    top_k: int = 0  # 0: off
    top_p: float = 1.0
    min_p: float = 0.0
    first_greedy_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()  # besides the end tokens of the model
    stop_strings: tuple[str, ...] = ()

    def __post_init__(self):
        rules = {
            "max_completion_length": (self.max_completion_length >= 1, "at least 1"),
            "temperature": (self.temperature >= 0, "0 (greedy) or above"),
            "top_k": (self.top_k >= 0, "0 (off) or above"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1 (off)"),
            "first_greedy_tokens": (self.first_greedy_tokens >= 0, "0 (off) or above"),
            "min_p": (0 <= self.min_p < 1, "from 0 (off) to below 1"),
        }
        for name, (holds, rule) in rules.items():
            if not holds:
                raise InputError(f"{name}={getattr(self, name)} must be {rule}")

    @property
    def greedy(self) -> bool:
        """True if the most likely token is taken each time."""
        return self.temperature == 0

    @property
    def truncated(self) -> bool:
        """True if some tokens are cut off before the draw."""
        return not self.greedy and (self.top_k > 0 or self.top_p < 1 or self.min_p > 0)

    def chosen(self, count: int) -> list[bool]:
        """Return a mask `(count,)` of a completion's tokens: False for the first ones, taken without a draw."""
        return [t >= self.first_greedy_tokens for t in range(count)]


def scheduled(start: float, end: float | None, progress: float) -> float:
    """Compute `start + progress * (end - start)`, `progress` from 0 to 1; `start` where there is no `end`."""
    return start if end is None else start + progress * (end - start)


def row_seed(*parts: int | str) -> int:
    """Return a 63-bit seed of (run seed, purpose, iteration, row, ...).

    It is the same on every rank and at every batch size.
    """
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def uniform_draws(seeds: list[int], length: int) -> Tensor:
    """Draw numbers in [0, 1), `(B, length)`: row b depends on `seeds[b]` alone."""
    return torch.stack([torch.rand(length, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
