"""The distribution of the rewards, and the scale and center that PPO should give them."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev

SMALL_STD, LARGE_STD = 0.5, 3.0
"""Standard deviations between which PPO's defaults fit, whose penalties and value head expect rewards of about 1."""
FAR_MEAN = 2.0
"""Distance of the mean from 0, in standard deviations, above which the rewards should be centered."""

_QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_BINS = 24


@dataclass(frozen=True, slots=True)
class Distribution:
    """Mean, standard deviation and quantiles of all rewards, and a histogram of those of chosen and rejected answers.

    `edges` are the ends of the histogram's bins, one more than there are counts.
    """

    mean: float
    std: float
    quantiles: dict[str, float]
    edges: list[float]
    chosen: list[int]
    rejected: list[int]


@dataclass(frozen=True, slots=True)
class Scale:
    """Recommendation for PPO: `(reward - center) / scale`, the flags that do this, and the reason in words."""

    center: float
    scale: float
    flags: dict[str, bool | float]
    words: str


def distribution_of(chosen: Sequence[float], rejected: Sequence[float]) -> Distribution:
    """Describe the rewards of both answers together."""
    rewards = sorted([*chosen, *rejected])
    low, high = rewards[0], rewards[-1]
    width = (high - low) / _BINS or 1.0
    edges = [low + width * number for number in range(_BINS + 1)]
    counts = []
    for part in (chosen, rejected):
        bins = [min(int((value - low) / width), _BINS - 1) for value in part]
        counts.append([bins.count(number) for number in range(_BINS)])
    quantiles = {f"{q:.0%}": rewards[round(q * (len(rewards) - 1))] for q in _QUANTILES}
    return Distribution(fmean(rewards), pstdev(rewards), quantiles, edges, *counts)


def recommended_scale(rewards: Distribution) -> Scale:
    """Return how PPO should scale rewards of this distribution."""
    mean, std = rewards.mean, rewards.std
    if not std:
        return Scale(mean, 1.0, {}, "All rewards are equal. No scale can help.")
    far = abs(mean) > FAR_MEAN * std
    if SMALL_STD <= std <= LARGE_STD and not far:
        return Scale(mean, std, {}, "The rewards are near 0 and their spread is near 1. PPO needs no scaling.")
    clip = max(5.0, float(round(max(abs(value - mean) for value in rewards.quantiles.values()) / std + 1)))
    flags: dict[str, bool | float] = {"use_score_scaling": True, "score_clip": clip}
    why = (
        [] if SMALL_STD <= std <= LARGE_STD else [f"The standard deviation of the rewards is {std:.3g} and not near 1."]
    )
    if far:
        flags["use_score_norm"] = True
        why.append(
            f"Their mean is {mean:.3g}, far from 0. Training the reward model with center_rewards_coefficient=0.01"
            " would bring it near 0."
        )
    return Scale(mean, std, flags, " ".join(why))
