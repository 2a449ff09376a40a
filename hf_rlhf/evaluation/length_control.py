"""The win rate at equal length: what is left of a preference when the longer completion has no advantage.

The idea is that of AlpacaEval 2 (Dubois et al. 2024, arXiv:2404.04475): a logistic regression of the preference on the
length difference, and its prediction where that difference is 0.

    P(policy is preferred) = sigmoid(t + f * tanh((length - length of the baseline) / standard deviation of that))
    controlled rate        = sigmoid(t)

Two things differ from AlpacaEval. It also has the difficulty of each instruction, which it fitted over the completions
of many models to its own 805 prompts; other prompts have none. And it chooses an L1 penalty by cross-validation, where
here `t` and `f` have a normal prior with a standard deviation of 5, which is enough for a judge who always takes the
longer one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PRIOR_STD = 5.0
LEAST_PAIRS = 5
"""Pairs in which the policy is no longer, and pairs in which it is no shorter, that a controlled rate needs."""

_RESAMPLES, _STEPS = 1000, 60


@dataclass(frozen=True, slots=True)
class LengthControlled:
    """Win rate at equal length. `low` and `high` bound it at 95%.

    They are the wider of a bootstrap over prompts and of a normal approximation of `t` (Laplace's). Where one side wins
    nearly always, a bootstrap sees no variation, and its interval would be that of certainty.

    The three are None where it cannot be told: one side is longer in nearly all pairs. `reason` says so then.
    """

    rate: float | None
    low: float | None
    high: float | None
    length_weight: float | None  # `f`: above 0 where longer completions are preferred
    longer: float  # share of the pairs in which the policy's completion is longer; equal ones count half
    reason: str = ""


def length_controlled_win_rate(
    preferences: Sequence[float], lengths: Sequence[int], baseline_lengths: Sequence[int], *, seed: int = 0
) -> LengthControlled:
    """Compute the win rate that is left at equal length, with its interval.

    Args:
        preferences: 1 where the policy's completion is preferred, 0 where the baseline's is, 0.5 for a tie; a share of
            several votes lies between.
        lengths: of the policy's completions, in characters or any other unit.
        baseline_lengths: of the baseline's.
        seed: of the bootstrap, which gives the same interval each time.

    Raises `ValueError` where nothing was compared.
    """
    if len(preferences) == 0:
        raise ValueError("preferences is empty: nothing was compared")
    y = np.asarray(preferences, dtype=float)
    difference = np.asarray(lengths, dtype=float) - np.asarray(baseline_lengths, dtype=float)
    longer = float(((difference > 0) + 0.5 * (difference == 0)).mean())
    if min((difference >= 0).sum(), (difference <= 0).sum()) < LEAST_PAIRS:
        side = "longer" if longer > 0.5 else "shorter"
        reason = (
            f"the policy's completion is {side} in {max(longer, 1 - longer):.0%} of {len(y)} pairs, which do not tell"
            " what would be preferred at equal length"
            if len(y) >= 2 * LEAST_PAIRS
            else f"there are {len(y)} pairs, too few to tell what would be preferred at equal length"
        )
        return LengthControlled(None, None, None, None, longer, reason)
    x = np.tanh(difference / (difference.std() or 1.0))
    draws = np.random.default_rng(seed).multinomial(len(y), np.full(len(y), 1 / len(y)), size=_RESAMPLES)
    level, slope = _fit(x, y, np.concatenate([np.ones((1, len(y))), draws]))
    rates = 1 / (1 + np.exp(-level))
    low, high = np.quantile(rates[1:], [0.025, 0.975])
    away = 1.96 * _standard_error(x, level[0], slope[0])
    low, high = min(low, 1 / (1 + np.exp(away - level[0]))), max(high, 1 / (1 + np.exp(-away - level[0])))
    return LengthControlled(float(rates[0]), float(low), float(high), float(slope[0]), longer)


def _standard_error(x: np.ndarray, level: float, slope: float) -> float:
    """Return the standard deviation of `t` in the normal approximation at its maximum."""
    predicted = 1 / (1 + np.exp(-(level + slope * x)))
    curvature, decay = predicted * (1 - predicted), 1 / PRIOR_STD**2
    both, mixed, alone = curvature.sum() + decay, (curvature * x).sum(), (curvature * x * x).sum() + decay
    return float(np.sqrt(alone / (both * alone - mixed**2)))


def _fit(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return `t` and `f`, `(R,)` each, that fit `x` and `y` `(N,)` best under each row of `weights` `(R, N)`.

    By Newton's method on the penalized log-likelihood, which has one maximum; no step is longer than 2.
    """
    level, slope = np.zeros(len(weights)), np.zeros(len(weights))
    decay = 1 / PRIOR_STD**2
    for _ in range(_STEPS):
        predicted = 1 / (1 + np.exp(-(level[:, None] + slope[:, None] * x)))
        error = weights * (y - predicted)
        curvature = weights * predicted * (1 - predicted)
        up_level, up_slope = error.sum(1) - decay * level, (error * x).sum(1) - decay * slope
        both, mixed, alone = curvature.sum(1) + decay, (curvature * x).sum(1), (curvature * x * x).sum(1) + decay
        determinant = both * alone - mixed**2
        step_level = (alone * up_level - mixed * up_slope) / determinant
        step_slope = (both * up_slope - mixed * up_level) / determinant
        largest = np.maximum(np.abs(step_level), np.abs(step_slope))
        scale = np.maximum(1.0, largest / 2)
        level, slope = level + step_level / scale, slope + step_slope / scale
        if largest.max() < 1e-9:
            break
    return level, slope
