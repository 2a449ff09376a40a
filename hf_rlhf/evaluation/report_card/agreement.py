"""Accuracy on all pairs and on groups of them: by length, by length ratio, by margin, by source and by subset."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from hf_rlhf.evaluation.metrics import wilson_interval
from hf_rlhf.evaluation.report_card.scoring import ScoredPairs
from hf_rlhf.evaluation.report_card.texts import text_of

SIMILAR = "similar length (0.8 to 1.25)"
"""Name of the group of pairs whose length decides little."""

_RATIOS = (
    ("chosen less than half as long", 0.0, 0.5),
    ("chosen shorter (0.5 to 0.8)", 0.5, 0.8),
    (SIMILAR, 0.8, 1.25),
    ("chosen longer (1.25 to 2)", 1.25, 2.0),
    ("chosen more than twice as long", 2.0, float("inf")),
)
_BINS, _MIN_ROWS_OF_A_BIN, _MAX_GROUPS = 4, 10, 12


@dataclass(frozen=True, slots=True)
class Agreement:
    """Share of `n` pairs whose chosen answer has the higher number. A tie counts half. `low` and `high` bound it.

    `longer_wins` is the same share for the number of characters of an answer: above 0.5 people prefer the longer one.
    """

    name: str
    n: int
    accuracy: float
    low: float
    high: float
    longer_wins: float

    @property
    def by_length(self) -> float:
        """Accuracy of the better of two rules: the longer answer wins, or the shorter one does."""
        return max(self.longer_wins, 1 - self.longer_wins)


@dataclass(frozen=True, slots=True)
class Verdicts:
    """For each of `n` pairs 1 (right), 0.5 (a tie) or 0: by the reward, and by the rule that the longer one wins."""

    reward: list[float]
    longer: list[float]

    def agreement(self, name: str, rows: Iterable[int] | None = None) -> Agreement:
        """Return the accuracy on these pairs, by default on all. There has to be one."""
        rows = range(len(self.reward)) if rows is None else list(rows)
        accuracy, longer = (share(values[row] for row in rows) for values in (self.reward, self.longer))
        return Agreement(name, len(rows), accuracy, *wilson_interval(accuracy, len(rows)), longer)


def verdicts_of(scored: ScoredPairs) -> Verdicts:
    """Compare the rewards of each pair, and its lengths in characters."""
    longer = [characters(c) - characters(r) for c, r in zip(scored.pairs.chosen, scored.pairs.rejected, strict=True)]
    return Verdicts(wins([c - r for c, r in zip(scored.chosen, scored.rejected, strict=True)]), wins(longer))


def wins(differences: Iterable[float]) -> list[float]:
    """Return 1 for each difference above 0, 0.5 for a tie, 0 below."""
    return [0.5 if difference == 0 else float(difference > 0) for difference in differences]


def share(values: Iterable[float]) -> float:
    """Return the mean of some values."""
    values = list(values)
    return sum(values) / len(values)


def characters(answer: Any) -> int:
    """Return the length of an answer's text."""
    return len(text_of(answer).strip())


def tables_of(scored: ScoredPairs, verdicts: Verdicts, unit: str) -> dict[str, list[Agreement]]:
    """Return the accuracy by group, for each way to group these pairs that there is."""
    about = scored.pairs.about
    longest = [max(pair) for pair in zip(scored.chosen_tokens, scored.rejected_tokens, strict=True)]
    tables = {
        "length_ratio": [verdicts.agreement(name, rows) for name, rows in _by_ratio(scored) if rows],
        "length": _in_bins(verdicts, longest, unit),
    }
    if margins := [margin for margin in about.get("margin", ()) if margin is not None]:
        tables["margin"] = _by_margin(verdicts, about["margin"], len(set(margins)))
    if any(about.get("source", ())):
        tables["source"] = _by_name(verdicts, about["source"], _MAX_GROUPS)
    if any(about.get("subset", ())):
        tables["subset"] = _by_name(verdicts, about["subset"], len(about["subset"]))
    return tables


def _by_ratio(scored: ScoredPairs) -> list[tuple[str, list[int]]]:
    """Group pairs by characters of the chosen answer divided by those of the rejected one."""
    lengths = zip(scored.pairs.chosen, scored.pairs.rejected, strict=True)
    ratios = [max(characters(chosen), 1) / max(characters(rejected), 1) for chosen, rejected in lengths]
    groups = []
    for name, low, high in _RATIOS:
        closed = name == SIMILAR  # both of its ends belong to it
        inside = [
            low <= ratio <= high if closed else low <= ratio < high if high <= 0.8 else low < ratio <= high
            for ratio in ratios
        ]
        groups.append((name, [row for row, found in enumerate(inside) if found]))
    return groups


def _in_bins(verdicts: Verdicts, values: Sequence[float], unit: str, digits: int = 0) -> list[Agreement]:
    """Return the accuracy in bins of about as many pairs each."""
    ordered = sorted(values)
    bins = max(1, min(_BINS, len(values) // _MIN_ROWS_OF_A_BIN))
    tops = sorted({ordered[len(ordered) * (number + 1) // bins - 1] for number in range(bins)})
    groups, below = [], float("-inf")
    for top in tops:
        rows = [row for row, value in enumerate(values) if below < value <= top]
        least = min(values[row] for row in rows)
        groups.append(verdicts.agreement(f"{least:.{digits}f} to {top:.{digits}f} {unit}".rstrip(), rows))
        below = top
    return groups


def _by_margin(verdicts: Verdicts, margins: Sequence[Any], different: int) -> list[Agreement]:
    known = [row for row, margin in enumerate(margins) if margin is not None]
    if different <= 6:
        values = sorted({margins[row] for row in known})
        return [verdicts.agreement(f"{value:g}", [row for row in known if margins[row] == value]) for value in values]
    own = Verdicts([verdicts.reward[row] for row in known], [verdicts.longer[row] for row in known])
    return _in_bins(own, [float(margins[row]) for row in known], "", digits=2)


def _by_name(verdicts: Verdicts, names: Sequence[Any], most: int) -> list[Agreement]:
    counts = Counter(str(name) for name in names if name)
    shown = [name for name, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most]]
    groups = [(name, [row for row, own in enumerate(names) if own and str(own) == name]) for name in shown]
    others = [row for row, name in enumerate(names) if not name or str(name) not in shown]
    return [verdicts.agreement(name, rows) for name, rows in [*groups, ("all others", others)] if rows]
