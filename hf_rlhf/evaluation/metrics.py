"""Numbers that compare two models on the same prompts, each with its uncertainty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

Z_95 = 1.959964  # the normal quantile of a two-sided 95% interval


@dataclass(frozen=True, slots=True)
class WinRate:
    """Rate at which "after" beats "before". `rate` counts a tie as half a win; `low` and `high` bound it at 95%."""

    rate: float
    low: float
    high: float
    wins: int
    ties: int
    losses: int

    @property
    def n(self) -> int:
        """Number of prompts."""
        return self.wins + self.ties + self.losses

    def __str__(self) -> str:
        return f"{self.rate:.0%} (95% interval {self.low:.0%} to {self.high:.0%}, {self.n} prompts)"


@dataclass(frozen=True, slots=True)
class Summary:
    """Mean and sample standard deviation of some numbers; `low` and `high` bound the mean at 95%."""

    n: int
    mean: float
    std: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class BeforeAfter:
    """One row of a before/after table. `percent` shows the numbers as percentages, `digits` counts their decimals."""

    metric: str
    before: float
    after: float
    digits: int = 2
    percent: bool = False

    @property
    def change(self) -> float:
        """After less before."""
        return self.after - self.before

    def formatted(self) -> tuple[str, str, str]:
        """Return before, after and signed change as text; a change in percentages is in points ("+12 pp").

        The change is that of the numbers as they are shown, so that a reader who subtracts them finds it.
        """
        scale, unit, change_unit = (100, "%", " pp") if self.percent else (1, "", "")
        before, after = (round(scale * number, self.digits) for number in (self.before, self.after))
        change = round(after - before, self.digits) + 0.0  # and never -0
        return (
            f"{before:.{self.digits}f}{unit}",
            f"{after:.{self.digits}f}{unit}",
            f"{change:+.{self.digits}f}{change_unit}",
        )


def win_rate(before: Sequence[float], after: Sequence[float], *, tie_margin: float = 1e-9) -> WinRate:
    """Compare ratings prompt by prompt; differences up to `tie_margin` are ties.

    rate = (wins + ties / 2) / n, with the Wilson (1927) score interval. Raises `ValueError` where the ratings are
    empty, of different length or not finite.
    """
    return preference_rate(preferences_of(before, after, tie_margin=tie_margin))


def preferences_of(before: Sequence[float], after: Sequence[float], *, tie_margin: float = 1e-9) -> list[float]:
    """Return 1.0 where "after" is rated higher, 0.0 where "before" is, and 0.5 for a tie; see `win_rate`."""
    if len(before) != len(after):
        raise ValueError(f"{len(before)} ratings before and {len(after)} after: give one pair per prompt")
    _check(before, "before")
    _check(after, "after")
    gains = [later - earlier for earlier, later in zip(before, after, strict=True)]
    return [0.5 if abs(gain) <= tie_margin else float(gain > 0) for gain in gains]


def preference_rate(preferences: Sequence[float]) -> WinRate:
    """Count preferences: above 0.5 "after" won, below it lost, and 0.5 is a tie. Raises as `win_rate` does."""
    _check(preferences, "preferences")
    wins = sum(each > 0.5 for each in preferences)
    losses = sum(each < 0.5 for each in preferences)
    ties = len(preferences) - wins - losses
    rate = (wins + ties / 2) / len(preferences)
    low, high = wilson_interval(rate, len(preferences))
    return WinRate(rate=rate, low=low, high=high, wins=wins, ties=ties, losses=losses)


def wilson_interval(rate: float, n: int, z: float = Z_95) -> tuple[float, float]:
    """Return the Wilson (1927) score interval of a rate. It stays inside [0, 1].

    `(p + z^2/2n +- z * sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)`
    """
    centre = rate + z * z / (2 * n)
    half = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def summarize(numbers: Sequence[float]) -> Summary:
    """Return mean +- z * std / sqrt(n) of numbers. Raises `ValueError` where they are empty or not finite."""
    _check(numbers, "numbers")
    mean = fmean(numbers)
    std = stdev(numbers) if len(numbers) > 1 else 0.0
    half = Z_95 * std / math.sqrt(len(numbers))
    return Summary(n=len(numbers), mean=mean, std=std, low=mean - half, high=mean + half)


def _check(numbers: Sequence[float], name: str) -> None:
    if not numbers:
        raise ValueError(f"{name} is empty: nothing was evaluated")
    for i, number in enumerate(numbers):
        if not math.isfinite(number):
            raise ValueError(
                f"{name}[{i}]={number} is invalid: it is no finite number. Rate every reply before you compare."
            )
