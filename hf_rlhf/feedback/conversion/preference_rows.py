"""Preferences in TRL's format, from the votes of all annotators on the same two completions."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from hf_rlhf.feedback.conversion.majority import majority, provenance
from hf_rlhf.feedback.conversion.questions import is_empty
from hf_rlhf.feedback.conversion.rules import ConversionRules
from hf_rlhf.feedback.conversion.votes import FIRST, SECOND, PairVote
from hf_rlhf.feedback.forms import BOTH_BAD, TIE

IDENTICAL, EMPTY = "identical completions", "an empty completion"
UNDECIDED, DISAGREEING = "annotators contradict each other", "agreement below min_agreement"
_WHY = {TIE: "a tie", BOTH_BAD: "both are bad", None: UNDECIDED}


def preference_rows(
    votes: Iterable[PairVote], rules: ConversionRules
) -> tuple[list[dict[str, Any]], Counter[str], list[PairVote]]:
    """Return one row for each pair whose votes have a majority for one side, and how many pairs gave none, and why.

    Votes on the same two completions of the same prompt are counted together, whichever form they are from. The margin
    is the mean over the votes of the majority.

    Returns:
        the rows, the counts, and the votes for `both_bad` where those are the majority.
    """
    rows, omitted, bad = [], Counter[str](), []
    for group in _by_pair(votes).values():
        first = group[0]
        if reason := _unusable(first):
            omitted[reason] += 1
            continue
        outcome, agreement = majority([vote.outcome for vote in group])
        if outcome == BOTH_BAD:
            bad += [vote for vote in group if vote.outcome == BOTH_BAD]
        if outcome not in (FIRST, SECOND):
            omitted[_WHY[outcome]] += 1
        elif agreement < rules.min_agreement:
            omitted[DISAGREEING] += 1
        else:
            rows.append(_row(group, outcome, agreement))
    return _with_margins(rows, rules), omitted, bad


def _by_pair(votes: Iterable[PairVote]) -> dict[tuple[str, str, str], list[PairVote]]:
    """Group votes by prompt and completions, all of a group with the same completion first."""
    groups: dict[tuple[str, str, str], list[PairVote]] = {}
    turned = {FIRST: SECOND, SECOND: FIRST}
    for vote in votes:
        if vote.first.key > vote.second.key:
            outcome = turned.get(vote.outcome, vote.outcome)
            vote = vote._replace(first=vote.second, second=vote.first, outcome=outcome)
        groups.setdefault((vote.question.key, vote.first.key, vote.second.key), []).append(vote)
    return groups


def _unusable(vote: PairVote) -> str | None:
    if vote.first.key == vote.second.key:
        return IDENTICAL
    return EMPTY if is_empty(vote.first) or is_empty(vote.second) else None


def _row(group: list[PairVote], outcome: str, agreement: float) -> dict[str, Any]:
    question = group[0].question
    sides = [[vote.first for vote in group], [vote.second for vote in group]]
    chosen, rejected = sides if outcome == FIRST else sides[::-1]
    margins = [vote.margin for vote in group if vote.outcome == outcome and vote.margin is not None]
    sources = [next((item.source for item in side if item.source is not None), None) for side in (chosen, rejected)]
    return {
        "prompt": question.prompt,
        "chosen": chosen[0].completion,
        "rejected": rejected[0].completion,
        "margin": sum(margins) / len(margins) if margins else None,
        **question.columns,
        **provenance((event for vote in group for event in vote.events), agreement, sources),
    }


def _with_margins(rows: list[dict[str, Any]], rules: ConversionRules) -> list[dict[str, Any]]:
    """Give every row a margin, or none: TRL takes no row without one beside rows with one."""
    known = rules.margins is not None and any(row["margin"] is not None for row in rows)
    for row in rows:
        margin = row.pop("margin")
        if known:
            assert rules.margins is not None
            columns = dict(row)
            row.clear()
            row |= {name: columns.pop(name) for name in ("prompt", "chosen", "rejected")}
            row["margin"] = round(float(rules.margins[1]) if margin is None else margin, 6)
            row |= columns
    return rows
