"""The answer of a judge about two completions, asked in both orders, and how far such answers agree."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Comparison:
    """Answers of a judge about two completions, once with each of them shown first.

    Args:
        shown_first: probability that the first completion is better, where it was shown first. 1, 0.5 (equal) or 0 from
            a judge that gives words; None where the answer could not be read.
        shown_second: the same, where it was shown second.
        position_log_odds: what the judge's preference for the reply shown first was corrected by, in both; 0 without a
            correction.
    """

    shown_first: float | None
    shown_second: float | None
    position_log_odds: float = 0.0

    @property
    def uncorrected(self) -> "Comparison":
        """The answers as the judge gave them, before they were corrected by `position_log_odds`."""
        shift = self.position_log_odds
        return Comparison(_shifted(self.shown_first, shift), _shifted(self.shown_second, -shift))

    @property
    def probability(self) -> float | None:
        """Probability that the first completion is better, the mean over both orders; None if one is missing."""
        if self.shown_first is None or self.shown_second is None:
            return None
        return (self.shown_first + self.shown_second) / 2

    @property
    def survived_swap(self) -> bool:
        """True if both orders name the same completion as the better one."""
        if self.shown_first is None or self.shown_second is None:
            return False
        return (self.shown_first - 0.5) * (self.shown_second - 0.5) > 0

    @property
    def preference(self) -> float | None:
        """1.0 for the first completion, 0.0 for the second, 0.5 for a tie: both orders do not agree on one of them."""
        if self.probability is None:
            return None
        return float(self.probability > 0.5) if self.survived_swap else 0.5

    @property
    def confidence(self) -> float | None:
        """Difference of the probabilities of the better and the other completion, the mean over both orders: 0 to 1."""
        return None if self.probability is None else abs(2 * self.probability - 1)


@dataclass(frozen=True, slots=True)
class Agreement:
    """Agreement of a judge with itself over many pairs, each asked in both orders.

    Args:
        pairs: asked.
        unanswered: of them, those without a readable answer in both orders.
        survived: those where both orders name the same completion.
        ties: the other answered ones, where the orders name different completions or an order names none.
        survived_share: `survived` among the answered pairs; None without any.
        shown_first_share: among the judge's own answers that name a completion, those that name the one shown first:
            0.5 without position bias; None without any. A correction for the position does not hide it.
        mean_position_shift: mean over its own answers of P(the one shown first is better) - 0.5: 0 without position
            bias, at most 0.5.
        survived_share_uncorrected: `survived_share` of the answers before they were corrected for the position; the
            same where none was.
    """

    pairs: int
    unanswered: int
    survived: int
    ties: int
    survived_share: float | None
    shown_first_share: float | None
    mean_position_shift: float | None
    survived_share_uncorrected: float | None

    def row(self) -> dict[str, int | float | None]:
        """Return the numbers by name, for JSON."""
        return asdict(self)


def agreement(comparisons: Sequence[Comparison]) -> Agreement:
    """Count how often a judge agrees with itself, and how much it leans to the completion shown first."""
    answered = [each for each in comparisons if each.probability is not None]
    survived = sum(each.survived_swap for each in answered)
    of_first_shown = [
        probability
        for each in (each.uncorrected for each in answered)
        if each.shown_first is not None and each.shown_second is not None
        for probability in (each.shown_first, 1 - each.shown_second)
    ]
    named = [probability > 0.5 for probability in of_first_shown if probability != 0.5]
    return Agreement(
        pairs=len(comparisons),
        unanswered=len(comparisons) - len(answered),
        survived=survived,
        ties=len(answered) - survived,
        survived_share=_mean([each.survived_swap for each in answered]),
        shown_first_share=_mean(named),
        mean_position_shift=_mean([probability - 0.5 for probability in of_first_shown]),
        survived_share_uncorrected=_mean([each.uncorrected.survived_swap for each in answered]),
    )


def corrected_for_position(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Take out how much the judge prefers what is shown first, as the other pairs show it.

    In log-odds, an answer is what the judge thinks of the replies, plus what it thinks of the place. Half of the
    difference between both orders is the place alone. Each pair is corrected by the mean of that over all other pairs,
    so no pair decides about itself (batch calibration, Zhou et al. 2023, arXiv 2309.17249, leaving one out).

    A pair without both answers stays as it is, and shows nothing. So does one with a certain answer, 0 or 1, as a judge
    that gives words has it, and a pair that is alone.
    """
    places = [place for each in comparisons if (place := _place(each)) is not None]
    if len(places) < 2:
        return list(comparisons)
    total, found = math.fsum(places), []
    for each in comparisons:
        place = _place(each)
        shift = 0.0 if place is None else (total - place) / (len(places) - 1)
        found.append(Comparison(_shifted(each.shown_first, -shift), _shifted(each.shown_second, shift), shift))
    return found


def _place(comparison: Comparison) -> float | None:
    """Return the log-odds for the place; None without both answers, or with a certain one."""
    first, second = comparison.shown_first, comparison.shown_second
    if first is None or second is None or not 0 < first < 1 or not 0 < second < 1:
        return None
    return (math.log(first / (1 - first)) - math.log(second / (1 - second))) / 2


def _shifted(probability: float | None, log_odds: float) -> float | None:
    """Return a probability whose log-odds are larger by `log_odds`."""
    if probability is None or not log_odds:
        return probability
    odds = math.exp(log_odds)
    return probability * odds / (probability * odds + 1 - probability)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
