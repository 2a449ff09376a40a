"""Precision and recall of a classifier at every threshold, and the choice of one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from hf_rlhf.errors import InputError
from hf_rlhf.evaluation.metrics import wilson_interval


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """A classifier that flags every score of at least `threshold`; counts and rates are of one labeled set.

    Attributes:
        threshold: in the unit of the scores.
        flagged: how many rows have such a score.
        hits: how many of these are positive.
        positives: how many rows are positive at all.
        rows: how many rows there are.
    """

    threshold: float
    flagged: int
    hits: int
    positives: int
    rows: int

    @property
    def precision(self) -> float:
        """`hits / flagged`; NaN where nothing is flagged."""
        return self.hits / self.flagged if self.flagged else math.nan

    @property
    def recall(self) -> float:
        """`hits / positives`; NaN where nothing is positive."""
        return self.hits / self.positives if self.positives else math.nan

    @property
    def f1(self) -> float:
        """`2 hits / (flagged + positives)`, the harmonic mean of precision and recall; NaN where both are."""
        total = self.flagged + self.positives
        return 2 * self.hits / total if total else math.nan

    def to_dict(self) -> dict[str, float | int | None]:
        """Return counts and rates with 95 % Wilson intervals; None for a rate that is not defined."""
        rates: dict[str, float | None] = {"f1": _known(self.f1)}
        for name, rate, n in (("precision", self.precision, self.flagged), ("recall", self.recall, self.positives)):
            low, high = wilson_interval(rate, n) if n else (None, None)
            rates |= {name: _known(rate), f"{name}_low": low, f"{name}_high": high}
        return asdict(self) | rates


def operating_point(scores: Sequence[float], labels: Sequence[bool], threshold: float) -> OperatingPoint:
    """Return what flagging every score of at least `threshold` gives. Raises `ValueError` as `precision_recall`."""
    _check(scores, labels)
    flagged = [label for score, label in zip(scores, labels, strict=True) if score >= threshold]
    return OperatingPoint(threshold, len(flagged), sum(flagged), sum(labels), len(labels))


def precision_recall(scores: Sequence[float], labels: Sequence[bool]) -> list[OperatingPoint]:
    """Return one point for each different score as the threshold, from the highest: recall never falls.

    Equal scores are flagged together, since no threshold parts them. Raises `ValueError` where there are no rows, not
    as many labels as scores, or a score that is not finite.
    """
    _check(scores, labels)
    ranked = sorted(zip(scores, labels, strict=True), key=lambda row: -row[0])
    points, hits = [], 0
    for row, (score, label) in enumerate(ranked):
        hits += label
        if row + 1 == len(ranked) or ranked[row + 1][0] != score:
            points.append(OperatingPoint(score, row + 1, hits, sum(labels), len(labels)))
    return points


def average_precision(points: Sequence[OperatingPoint]) -> float:
    """Return `sum_n (R_n - R_{n-1}) P_n` over the points of `precision_recall`; the share of positives is chance.

    The definition of scikit-learn's `average_precision_score`. NaN where no row is positive.
    """
    recalls = [0.0, *(point.recall for point in points)]
    return math.fsum((recalls[n + 1] - recalls[n]) * point.precision for n, point in enumerate(points))


def choose_point(
    points: Sequence[OperatingPoint], *, min_precision: float | None = None, min_recall: float | None = None
) -> OperatingPoint:
    """Return the point of the highest F1, or the best one that keeps a limit.

    Args:
        points: of `precision_recall`.
        min_precision: the least precision; of the points that have it, the one of the highest recall is taken.
        min_recall: the least recall; of the points that have it, the one of the highest precision is taken.

    Raises `InputError` where no row is positive, where both limits are given, and where no threshold keeps the limit.
    """
    if not points or not points[0].positives:
        raise InputError("no threshold can be chosen: none of the rows is labeled positive. Give rows of both labels.")
    if min_precision is not None and min_recall is not None:
        raise InputError(
            f"min_precision={min_precision} is invalid together with min_recall={min_recall}: one of them is the limit"
            " and the other one is made as high as can be. Give one."
        )
    if min_recall is not None:
        kept = [point for point in points if point.recall >= min_recall]
        return max(kept, key=lambda point: (point.precision, point.recall)) if kept else points[-1]
    if min_precision is None:
        return max(points, key=lambda point: (point.f1, point.precision))
    kept = [point for point in points if point.precision >= min_precision]
    if not kept:
        best = max(point.precision for point in points)
        raise InputError(
            f"min_precision={min_precision} is invalid: the highest precision at any threshold is {best:.3f}. Lower it,"
            " or train a better classifier."
        )
    return max(kept, key=lambda point: (point.recall, point.precision))


def _known(rate: float) -> float | None:
    return None if math.isnan(rate) else rate


def _check(scores: Sequence[float], labels: Sequence[bool]) -> None:
    if len(scores) != len(labels) or not scores:
        raise ValueError(f"{len(scores)} scores and {len(labels)} labels: give one of each for every row")
    for row, score in enumerate(scores):
        if not math.isfinite(score):
            raise ValueError(f"scores[{row}]={score} is not a finite number")
