"""Public formats of feedback: how each is told by its columns. `conversions.py` turns their rows into two shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

SHP = "SHP"
SUMMARIES = "summarize-from-feedback comparisons"
RANKINGS = "Nectar rankings"
STRENGTHS = "HelpSteer2 preferences"
RATINGS = "HelpSteer ratings"
LABELS = "binary labels (KTO)"
RATED = "rated completions"

ATTRIBUTES = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
"""The attributes that HelpSteer rates from 0 to 4."""


@dataclass(frozen=True)
class Format:
    """The columns of a public format, and what one of its rows holds.

    Rows that hold one completion belong to the group of their prompt. `beside` are columns that are read where the set
    has them.
    """

    name: str
    needs: tuple[str, ...]
    holds: Literal["pair", "group", "completion"]
    beside: tuple[str, ...] = ()

    def columns(self, found: Sequence[str]) -> list[str]:
        """Return the columns of this format among those found."""
        return [name for name in (*self.needs, *self.beside, "source") if name in found]


FORMATS = {
    each.name: each
    for each in (
        Format(
            SHP,
            ("history", "human_ref_A", "human_ref_B", "labels"),
            "pair",
            ("score_A", "score_B", "score_ratio", "domain"),
        ),
        Format(SUMMARIES, ("info", "summaries", "choice"), "pair"),
        Format(RANKINGS, ("prompt", "answers"), "group"),
        Format(STRENGTHS, ("prompt", "response_1", "response_2", "preference_strength"), "group"),
        Format(RATINGS, ("prompt", "response", "helpfulness"), "completion"),
        Format(LABELS, ("prompt", "completion", "label"), "completion"),
        Format(RATED, ("prompt", "completions", "ratings"), "group"),
    )
}

_TOLD_BY_VALUES = {
    RANKINGS: ("answers", lambda answers: isinstance(answers, list) and any(map(_is_ranked, answers))),
    LABELS: ("label", lambda label: label_problem(label) is None),
    RATED: ("completions", lambda completions: isinstance(completions, list)),
}


def format_columns(found: Sequence[str]) -> list[str]:
    """Return the columns by which the formats are told that have all of theirs among those found."""
    return [name for each in FORMATS.values() if set(each.needs) <= set(found) for name in each.needs]


def find_format(columns: Mapping[str, Sequence[Any]]) -> str:
    """Return the name of the format that has these columns, and values such as most of theirs; "" for none."""
    for each in FORMATS.values():
        if set(each.needs) <= set(columns) and _most_values_fit(each.name, columns):
            return each.name
    return ""


def closest_format(found: Sequence[str]) -> Format | None:
    """Return the format of which most columns are there, none where only its prompt or completion is."""
    common = {"prompt", "completion", "source"}
    shares = {
        len(set(each.needs) & set(found)) / len(each.needs): each
        for each in FORMATS.values()
        if set(each.needs) & set(found) - common
    }
    share = max(shares, default=0)
    return shares[share] if share >= 0.5 else None


def label_problem(label: Any) -> str | None:
    """Return what is wrong with a label that should be true or false, or 1 or 0; None for a good one."""
    return None if isinstance(label, (bool, int, float)) and label in (0, 1) else f"{label!r} instead of true or false"


def _most_values_fit(name: str, columns: Mapping[str, Sequence[Any]]) -> bool:
    if name not in _TOLD_BY_VALUES:
        return True
    column, fits = _TOLD_BY_VALUES[name]
    values = [value for value in columns[column] if value is not None]
    return sum(map(fits, values)) > len(values) / 2


def _is_ranked(answer: Any) -> bool:
    return isinstance(answer, Mapping) and "rank" in answer
