"""Coefficients of agreement between annotators, each for one matrix of counts or for many at once.

Counts are summed over units (what is annotated), so a coefficient of resampled units is that of a weighted sum.
Axes: `U` units, `V` values in their order, `R` resamples.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

Array = np.ndarray
NOMINAL, ORDINAL, INTERVAL = "nominal", "ordinal", "interval"
RESAMPLES = 500


class Estimate(NamedTuple):
    """A number with its 95 % interval; None where it is undefined."""

    value: float | None
    low: float | None
    high: float | None


def coincidences(units: Sequence[Sequence[int]], values: int) -> Array:
    """Return the coincidence matrix of each unit, `(U, V, V)`, from the numbers of the values that it was given.

    o_ck = sum over ordered pairs of different annotators with values c and k, divided by m - 1 (Krippendorff 2011).
    A unit with one value has none.
    """
    made = np.zeros((len(units), values, values))
    for number, given in enumerate(units):
        if len(given) > 1:
            counts = np.bincount(given, minlength=values).astype(float)
            made[number] = (np.outer(counts, counts) - np.diag(counts)) / (len(given) - 1)
    return made


def percent_agreement(coincidence: Array) -> Array:
    """Return the share of pairs of annotations with equal values, of `(..., V, V)`; NaN where there are no pairs."""
    return _divided(np.trace(coincidence, axis1=-2, axis2=-1), coincidence.sum((-2, -1)))


def krippendorff_alpha(coincidence: Array, level: str, numbers: Sequence[float]) -> Array:
    """Return Krippendorff's alpha of `(..., V, V)`; NaN where all values are equal.

    alpha = 1 - (n - 1) * sum o_ck d_ck / sum n_c n_k d_ck  (Krippendorff 2011, "Computing Krippendorff's
    Alpha-Reliability").

    Args:
        coincidence: summed over units.
        level: nominal, ordinal or interval.
        numbers: the values, ascending; only the interval level reads more than their order.
    """
    margins = coincidence.sum(-1)
    total = margins.sum(-1)
    if level == NOMINAL:
        distance = np.broadcast_to(1.0 - np.eye(len(numbers)), coincidence.shape)
    else:
        places = np.cumsum(margins, -1) - margins / 2 if level == ORDINAL else np.broadcast_to(np.asarray(numbers, float), margins.shape)  # fmt: skip
        distance = (places[..., :, None] - places[..., None, :]) ** 2
    observed = (coincidence * distance).sum((-2, -1))
    expected = (margins[..., :, None] * margins[..., None, :] * distance).sum((-2, -1))
    return 1 - (total - 1) * _divided(observed, expected)


def cohens_kappa(confusion: Array, linear: Sequence[float] | None = None) -> Array:
    """Return Cohen's kappa of `(..., V, V)`, counts of two annotators' values; NaN where chance explains all.

    kappa = 1 - sum w_ij o_ij / sum w_ij e_ij, where w_ij is 1 for different values (Cohen 1960), or their distance
    where `linear` gives the numbers of the values (Cohen 1968).
    """
    places = np.asarray(linear if linear is not None else np.zeros(confusion.shape[-1]), float)
    weights = np.abs(places[:, None] - places) if linear is not None else 1.0 - np.eye(len(places))
    total = confusion.sum((-2, -1))
    chance = confusion.sum(-1)[..., :, None] * confusion.sum(-2)[..., None, :]
    return 1 - total * _divided((confusion * weights).sum((-2, -1)), (chance * weights).sum((-2, -1)))


def kendalls_w(rankings: Sequence[Sequence[float]]) -> float:
    """Return Kendall's W of rankings of the same things, corrected for ties; NaN where all are ties.

    W = (12 S - 3 m^2 n (n + 1)^2) / (m^2 n (n^2 - 1) - m T), with S the sum of squared rank sums and T the sum of
    t^3 - t over groups of t tied ranks (Kendall 1939; Siegel and Castellan 1988, 9.5).
    """
    ranks = np.array([_mid_ranks(ranking) for ranking in rankings])
    m, n = ranks.shape
    ties = sum(count**3 - count for ranking in rankings for count in np.unique(ranking, return_counts=True)[1].tolist())
    sums = (ranks.sum(0) ** 2).sum()
    whole = m**2 * n * (n**2 - 1) - m * ties
    return float((12 * sums - 3 * m**2 * n * (n + 1) ** 2) / whole) if whole else math.nan


class Resampled(NamedTuple):
    """Sums of the parts of all units, `(...)`, and of the units of each bootstrap resample, `(R, ...)`."""

    total: Array
    drawn: Array

    @classmethod
    def of(cls, parts: Array, seed: int = 0, resamples: int = RESAMPLES) -> "Resampled":
        """Draw resamples of `parts` `(U, ...)`; the same parts and seed give the same ones.

        Equal parts are drawn together: the number of times that any of them is drawn is multinomial.
        """
        shape = parts.shape[1:]
        if not len(parts):
            return cls(np.zeros(shape), np.zeros((0, *shape)))
        different, counts = np.unique(parts.reshape(len(parts), -1), axis=0, return_counts=True)
        drawn = np.random.default_rng(seed).multinomial(len(parts), counts / len(parts), size=resamples)
        return cls(parts.sum(0), (drawn @ different).reshape(resamples, *shape))

    def estimate(self, statistic: Callable[[Array], Array]) -> Estimate:
        """Return a statistic of the sums with its interval: the percentiles 2.5 and 97.5 of the resamples."""
        if not len(self.drawn):
            return Estimate(None, None, None)
        values = statistic(self.drawn)
        values = values[np.isfinite(values)]
        low, high = np.percentile(values, [2.5, 97.5]).tolist() if len(values) else (None, None)
        return Estimate(number_or_none(float(statistic(self.total))), *map(number_or_none, (low, high)))


def wilson(count: int, total: int, z: float = 1.959964) -> Estimate:
    """Return a share with its Wilson interval (Wilson 1927), by default of 95 %."""
    if not total:
        return Estimate(None, None, None)
    share = count / total
    center = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2)) / (1 + z**2 / total)
    return Estimate(*(round(number, 6) for number in (share, max(center - half, 0.0), min(center + half, 1.0))))


def number_or_none(number: float | None) -> float | None:
    """Return a number as JSON has it: rounded, and None for one that is undefined."""
    return None if number is None or not math.isfinite(number) else round(number, 6) + 0.0


def _mid_ranks(ranking: Sequence[float]) -> list[float]:
    ordered = sorted(ranking)
    return [ordered.index(rank) + (ordered.count(rank) + 1) / 2 for rank in ranking]


def _divided(one: Array, other: Array) -> Array:
    """Divide, where nothing over nothing is NaN."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.asarray(other) > 0, one / other, np.nan)
