"""Control of the KL coefficient, which holds the policy to its reference."""

from dataclasses import dataclass


@dataclass
class FixedKL:
    """A coefficient that stays."""

    coef: float

    def update(self, sequence_kl: float, episodes: int) -> None:
        """Do nothing."""


@dataclass
class AdaptiveKL:
    """Proportional control of the KL of a whole completion (Ziegler 2019, arXiv 1909.08593, section 2.2).

    e = clip(KL / target - 1, -0.2, 0.2);  coef <- coef * (1 + e * episodes / horizon), the last ratio at most 1
    """

    coef: float
    target: float  # nats a completion
    horizon: int  # episodes

    def update(self, sequence_kl: float, episodes: int) -> None:
        """Move the coefficient by one iteration of `episodes` completions whose mean KL was `sequence_kl`."""
        error = min(max(sequence_kl / self.target - 1, -0.2), 0.2)
        self.coef *= 1 + error * min(episodes / self.horizon, 1.0)


KLControl = FixedKL | AdaptiveKL
