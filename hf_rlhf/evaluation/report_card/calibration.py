"""Probabilities that the reward differences stand for, against what people chose; and rewards against length."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from hf_rlhf.evaluation.metrics import Z_95, wilson_interval
from hf_rlhf.evaluation.report_card.agreement import share, wins
from hf_rlhf.evaluation.report_card.scoring import ScoredPairs

_BINS, _PAIRS_OF_A_BIN, _POINTS = 10, 30, 400


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    """Mean probability of `n` pairs that the preferred answer is the chosen one, and the share of which it is."""

    n: int
    probability: float
    share: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """Agreement of `sigmoid(reward difference)` with the choices.

    `error` is the expected calibration error, `sum n_b / n |share_b - probability_b|`. Chance alone gives a reward
    whose probabilities are exact about `error_by_chance`. `overconfidence` is the mean probability minus the share of
    all pairs: above 0 the reward is more certain than it is right. `log_loss` is the mean of
    `-log sigmoid(chosen - rejected)`: 0.693 for a reward that knows nothing.
    """

    bins: list[CalibrationBin]
    error: float
    error_by_chance: float
    overconfidence: float
    log_loss: float


@dataclass(frozen=True, slots=True)
class LengthEffect:
    """Regression of reward differences on length differences of the same pair, through the origin.

    `slope` is in rewards per token, bounded at 95% by `low` and `high` (standard error of White 1980). `correlation` is
    that of the two differences, about zero. `picks_longer` is the share of the `unequal` pairs, whose texts differ in
    length, in which the longer text has the higher reward; `people_pick_longer` that in which people chose it.
    `excess_low` and `excess_high` bound the first minus the second at 95% (paired). `points` are (tokens, reward) of
    some pairs.
    """

    unit: str
    slope: float
    low: float
    high: float
    correlation: float
    correlation_low: float
    correlation_high: float
    picks_longer: float
    people_pick_longer: float
    unequal: int
    excess_low: float
    excess_high: float
    points: list[tuple[float, float]]


def calibration_of(differences: Sequence[float]) -> Calibration:
    """Compare probabilities and choices in bins of equally many pairs; `differences` are chosen minus rejected."""
    rows = _equal_in_bins(differences)
    count = max(1, min(_BINS, len(rows) // _PAIRS_OF_A_BIN))
    bins, error, by_chance = [], 0.0, 0.0
    for number in range(count):
        part = rows[len(rows) * number // count : len(rows) * (number + 1) // count]
        probability, found, weight = share(p for p, _ in part), share(won for _, won in part), len(part) / len(rows)
        bins.append(CalibrationBin(len(part), probability, found, *wilson_interval(found, len(part))))
        error += weight * abs(found - probability)
        # E|x| of a normal is std * sqrt(2 / pi)
        by_chance += weight * math.sqrt(2 / math.pi * share(p * (1 - p) for p, _ in part) / len(part))
    overconfidence = share(p for p, _ in rows) - share(won for _, won in rows)
    return Calibration(bins, error, by_chance, overconfidence, share(softplus(-each) for each in differences))


def _equal_in_bins(differences: Sequence[float]) -> list[tuple[float, float]]:
    """Return (probability, won) in the order of probabilities; of pairs with the same one, each has the mean of `won`.

    Otherwise a boundary between bins would part them by what was to be predicted, or by their place in the set.
    """
    same: dict[float, list[float]] = {}
    for difference, won in zip(differences, wins(differences), strict=True):
        same.setdefault(sigmoid(abs(difference)), []).append(won)
    return [(probability, share(same[probability])) for probability in sorted(same) for _ in same[probability]]


def length_effect(scored: ScoredPairs, unit: str) -> LengthEffect:
    """Measure how much of a reward difference a length difference predicts."""
    rewards = [chosen - rejected for chosen, rejected in zip(scored.chosen, scored.rejected, strict=True)]
    lengths = [float(c - r) for c, r in zip(scored.chosen_tokens, scored.rejected_tokens, strict=True)]
    squares, products = math.fsum(x * x for x in lengths), math.fsum(map(math.prod, zip(lengths, rewards, strict=True)))
    slope = products / squares if squares else 0.0
    residuals = math.fsum((x * (y - slope * x)) ** 2 for x, y in zip(lengths, rewards, strict=True))
    half = Z_95 * math.sqrt(residuals) / squares if squares else 0.0
    spread = math.sqrt(squares) * math.sqrt(math.fsum(y * y for y in rewards))
    correlation = max(-1.0, min(1.0, products / spread)) if spread else 0.0
    unequal = [(x, y) for x, y in zip(lengths, rewards, strict=True) if x]
    picks, people = list(wins(x * y for x, y in unequal)), list(wins(x for x, _ in unequal))
    step = max(len(rewards) / _POINTS, 1)
    kept = [int(number * step) for number in range(min(len(rewards), _POINTS))]
    return LengthEffect(
        unit,
        slope,
        slope - half,
        slope + half,
        correlation,
        *_fisher_interval(correlation, len(rewards)),
        picks_longer=share(picks) if unequal else 0.5,
        people_pick_longer=share(people) if unequal else 0.5,
        unequal=len(unequal),
        **_excess([one - other for one, other in zip(picks, people, strict=True)]),
        points=[(lengths[row], round(rewards[row], 5)) for row in kept],
    )


def _excess(differences: Sequence[float]) -> dict[str, float]:
    """Return the bounds of a mean paired difference, `mean +- 1.96 x std / sqrt(n)`; -1 and 1 for fewer than two."""
    if len(differences) < 2:
        return {"excess_low": -1.0, "excess_high": 1.0}
    middle, half = fmean(differences), Z_95 * stdev(differences) / math.sqrt(len(differences))
    return {"excess_low": max(-1.0, middle - half), "excess_high": min(1.0, middle + half)}


def _fisher_interval(correlation: float, n: int) -> tuple[float, float]:
    """Return `tanh(atanh(r) +- 1.96 / sqrt(n - 2))`, the interval of Fisher (1915) with one mean fewer to estimate."""
    if n <= 2 or abs(correlation) > 1 - 1e-12:
        return (-1.0, 1.0) if n <= 2 else (correlation, correlation)
    middle, half = math.atanh(correlation), Z_95 / math.sqrt(n - 2)
    return math.tanh(middle - half), math.tanh(middle + half)


def sigmoid(x: float) -> float:
    """Return `1 / (1 + exp(-x))`, for any finite x."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def softplus(x: float) -> float:
    """Return `log(1 + exp(x))`, for any finite x."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))
