"""Checks of single annotators: preference for a place on the screen, answers to gold questions, and pace."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

from hf_rlhf.feedback.coefficients import wilson
from hf_rlhf.feedback.forms import CORRECTION, CUSTOM, PAIRWISE, RANKING, RATING, SCALE, SPAN, TEXT, Form
from hf_rlhf.feedback.store import Event
from hf_rlhf.feedback.tasks import Task

FEWEST_FOR_A_FLAG = 20
Z_OF_A_FLAG = 2.575829
"""A preference for a place is flagged where the 99 % interval does not hold one half: one of 100 fair annotators is."""

HURRIED = 0.25
"""An answer in less than this share of everybody's median time for the same form is called hurried."""


def position_bias(answers: Iterable[tuple[Task, Event]]) -> dict[str, Any]:
    """Return how often the completion that was shown first is the preferred one, of pairwise answers.

    `n` counts answers with a preference and a known order; `share` has a 95 % interval from `low` to `high`.
    """
    first = total = 0
    for task, event in answers:
        preferred = (event.value or {}).get("preferred")
        if task.form.kind == PAIRWISE and preferred in (0, 1) and event.shown_order:
            total += 1
            first += event.shown_order[0] == preferred
    share, low, high = wilson(first, total)
    _, lower, upper = wilson(first, total, Z_OF_A_FLAG)
    flagged = total >= FEWEST_FOR_A_FLAG and lower is not None and upper is not None and not lower <= 0.5 <= upper
    return {"n": total, "first": first, "share": share, "low": low, "high": high, "flagged": flagged}


def gold_accuracy(answers: Iterable[tuple[Task, Event]]) -> dict[str, Any]:
    """Return the share of answers to gold questions that are right, with a 95 % interval."""
    judged = [is_right(task, event.value or {}) for task, event in answers if task.gold is not None]
    share, low, high = wilson(sum(judged), len(judged))
    return {"n": len(judged), "right": sum(judged), "accuracy": share, "low": low, "high": high}


def pace(answers: Sequence[tuple[Task, Event]], medians: Mapping[str, float]) -> dict[str, Any]:
    """Return the median seconds of an answer, and how many answers were hurried; `medians` are those of each form."""
    timed = [(task.form.kind, event.seconds) for task, event in answers if event.seconds is not None]
    hurried = sum(seconds < HURRIED * medians[kind] for kind, seconds in timed)
    median = statistics.median(seconds for _, seconds in timed) if timed else None
    return {"n": len(timed), "median_seconds": median, "hurried": hurried}


def median_seconds(answers: Iterable[tuple[Task, Event]]) -> dict[str, float]:
    """Return the median time of an answer to each kind of form."""
    seconds: dict[str, list[float]] = {}
    for task, event in answers:
        if event.seconds is not None:
            seconds.setdefault(task.form.kind, []).append(event.seconds)
    return {kind: statistics.median(found) for kind, found in seconds.items()}


def is_right(task: Task, value: Mapping[str, Any]) -> bool:
    """Return whether an answer fits the gold one of its task.

    A preference has the same side, whatever its strength. A ranking has all pairs of different gold ranks in that
    order. Ratings and scales are within one point, a corrected text is equal but for whitespace, spans are equal, and
    texts of a custom form are not compared.
    """
    return _RIGHT[task.form.kind](task.form, task.gold or {}, value)


def _same_order(form: Form, gold: Mapping[str, Any], value: Mapping[str, Any]) -> bool:
    ranks, given = gold["ranks"], value["ranks"]
    pairs = [(i, j) for i, j in combinations(range(len(ranks)), 2) if ranks[i] != ranks[j]]
    return all((ranks[i] - ranks[j]) * (given[i] - given[j]) > 0 for i, j in pairs)


def _same_ratings(form: Form, gold: Mapping[str, Any], value: Mapping[str, Any]) -> bool:
    return all(
        abs(one - other) <= 1
        for name in form.criteria
        for one, other in zip(gold["ratings"][name], value["ratings"][name], strict=True)
    )


def _same_fields(form: Form, gold: Mapping[str, Any], value: Mapping[str, Any]) -> bool:
    for field in form.fields:
        if field.type == TEXT or field.name not in gold["fields"]:
            continue
        expected, given = gold["fields"][field.name], value["fields"].get(field.name)
        if given is None or (abs(given - expected) > 1 if field.type == SCALE else given != expected):
            return False
    return True


_RIGHT: dict[str, Callable[[Form, Mapping[str, Any], Mapping[str, Any]], bool]] = {
    PAIRWISE: lambda form, gold, value: gold["preferred"] == value["preferred"],
    RANKING: _same_order,
    RATING: _same_ratings,
    CORRECTION: lambda form, gold, value: gold["text"].split() == value["text"].split(),
    SPAN: lambda form, gold, value: gold["spans"] == value["spans"],
    CUSTOM: _same_fields,
}
