"""Rows about single completions: demonstrations, labels (KTO), and completions with their ratings or ranks."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

from hf_rlhf.feedback.conversion.majority import majority, provenance
from hf_rlhf.feedback.conversion.preference_rows import DISAGREEING, EMPTY, UNDECIDED
from hf_rlhf.feedback.conversion.questions import Answer, Item, Question, is_empty
from hf_rlhf.feedback.conversion.rules import BAD_SHARE, GOOD_SHARE, ConversionRules
from hf_rlhf.feedback.conversion.votes import PairVote, Rated
from hf_rlhf.feedback.store import Event
from hf_rlhf.feedback.tasks import text_of

NEITHER = "neither good nor bad"


class Labeled(NamedTuple):
    """A completion that one annotator calls good (True), bad (False) or neither (None)."""

    question: Question
    item: Item
    label: bool | None
    event: Event


def labels_of(ratings: Iterable[Rated], both_bad: Iterable[PairVote]) -> list[Labeled]:
    """Return the labels that ratings and the answer that both are bad say."""
    labels = []
    for rated in ratings:
        label = True if rated.share >= GOOD_SHARE else False if rated.share <= BAD_SHARE else None
        labels.append(Labeled(rated.question, rated.item, label, rated.event))
    for vote in both_bad:
        labels += [Labeled(vote.question, item, False, vote.events[0]) for item in vote.question.items]
    return labels


def label_rows(labels: Iterable[Labeled], rules: ConversionRules) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Return one row for each completion whose labels have a majority, as KTO takes them, and why others gave none."""
    groups: dict[tuple[str, str], list[Labeled]] = {}
    for each in labels:
        groups.setdefault((each.question.key, each.item.key), []).append(each)
    rows, omitted = [], Counter[str]()
    for group in groups.values():
        question, item = group[0].question, group[0].item
        label, agreement = majority([str(each.label) for each in group])
        if is_empty(item):
            omitted[EMPTY] += 1
        elif label is None or label == str(None):
            omitted[NEITHER if label else UNDECIDED] += 1
        elif agreement < rules.min_agreement:
            omitted[DISAGREEING] += 1
        else:
            rows.append(
                {
                    "prompt": question.prompt,
                    "completion": item.completion,
                    "label": label == str(True),
                    **question.columns,
                    **provenance((each.event for each in group), agreement, [_source(each.item for each in group)]),
                }
            )
    return rows, omitted


def demonstration_rows(corrected: Iterable[tuple[Answer, Item]]) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Return the corrected completions as demonstrations for SFT; the same text of two annotators is one row."""
    groups: dict[tuple[str, str], list[tuple[Answer, Item]]] = {}
    for answer, item in corrected:
        groups.setdefault((answer.question.key, item.key), []).append((answer, item))
    rows, omitted = [], Counter[str]()
    for group in groups.values():
        (question, _), item = group[0]
        if is_empty(item):
            omitted[EMPTY] += 1
            continue
        rows.append(
            {
                "prompt": question.prompt,
                "completion": item.completion,
                **question.columns,
                "original": text_of(question.task.completions[0]),
                **provenance((answer.event for answer, _ in group), 1.0, [question.items[0].source]),
            }
        )
    return rows, omitted


def rating_rows(ratings: Sequence[Rated], rules: ConversionRules) -> tuple[list[dict[str, Any]], Counter[str], str]:
    """Return each prompt with its rated completions, for losses of ratings, and the scale that the ratings are on.

    A rating is the mean over annotators, on the scale of the forms where all have the same, else from 0 to 1.
    """
    points = {rated.points for rated in ratings}
    scale = "z-scores" if rules.standardize_ratings else f"1 to {points.pop()}" if len(points) == 1 else "0 to 1"
    values = _standardized(ratings) if rules.standardize_ratings else [r.rating if scale != "0 to 1" else r.share for r in ratings]  # fmt: skip
    rows, omitted = [], Counter[str]()
    groups: dict[str, dict[str, list[tuple[Rated, float]]]] = {}
    for rated, value in zip(ratings, values, strict=True):
        if is_empty(rated.item):
            omitted[EMPTY] += 1
        else:
            groups.setdefault(rated.question.key, {}).setdefault(rated.item.key, []).append((rated, value))
    for items in groups.values():
        question = next(iter(items.values()))[0][0].question
        found = [[rated for rated, _ in given] for given in items.values()]
        rows.append(
            {
                "prompt": question.prompt,
                "completions": [given[0].item.completion for given in found],
                "ratings": [_mean([value for _, value in given]) for given in items.values()],
                **question.columns,
                **_criteria(found),
                **provenance(
                    (rated.event for given in found for rated in given),
                    _closeness([[rated.share for rated in given] for given in found]),
                    [_source(rated.item for rated in given) for given in found],
                ),
            }
        )
    return rows, omitted, scale


def ranking_rows(answers: Iterable[Answer]) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Return each ranked task as rated completions: a rating is the mean rank over annotators, negative."""
    groups: dict[str, list[Answer]] = {}
    for answer in answers:
        groups.setdefault(answer.question.task.id, []).append(answer)
    rows, omitted = [], Counter[str]()
    for group in groups.values():
        question = group[0].question
        if any(map(is_empty, question.items)):
            omitted[EMPTY] += 1
            continue
        ranks = [list(map(float, (answer.event.value or {})["ranks"])) for answer in group]
        by_item = list(zip(*ranks, strict=True))
        highest = len(question.items) - 1
        rows.append(
            {
                "prompt": question.prompt,
                "completions": [item.completion for item in question.items],
                "ratings": [-_mean(given) for given in by_item],
                **question.columns,
                **provenance(
                    (answer.event for answer in group),
                    _closeness([[(rank - 1) / highest for rank in given] for given in by_item]),
                    [item.source for item in question.items],
                ),
            }
        )
    return rows, omitted


def _source(items: Iterable[Item]) -> str | None:
    return next((item.source for item in items if item.source is not None), None)


def _criteria(found: Sequence[Sequence[Rated]]) -> dict[str, list[float | None]]:
    names = dict.fromkeys(name for given in found for rated in given for name in rated.criteria)
    return {
        f"rating_{name}": [
            _mean(values) if (values := [rated.criteria[name] for rated in given if name in rated.criteria]) else None
            for given in found
        ]
        for name in names
    }


def _standardized(ratings: Sequence[Rated]) -> list[float]:
    """Return each rating's distance from its annotator's mean, in standard deviations; 0 where all are equal."""
    shares: dict[str, list[float]] = {}
    for rated in ratings:
        shares.setdefault(rated.event.annotator, []).append(rated.share)
    scales: Mapping[str, tuple[float, float]] = {name: _mean_and_deviation(given) for name, given in shares.items()}
    found = []
    for rated in ratings:
        mean, deviation = scales[rated.event.annotator]
        found.append((rated.share - mean) / deviation if deviation > 1e-12 else 0.0)
    return found


def _mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    mean = sum(values) / len(values)
    return mean, (sum((value - mean) ** 2 for value in values) / len(values)) ** 0.5


def _closeness(shares: Sequence[Sequence[float]]) -> float:
    """Return 1 minus the mean distance between two annotators' places on the scale; 1 where there is one annotator."""
    gaps = [abs(one - other) for given in shares for one, other in combinations(given, 2)]
    return 1 - sum(gaps) / len(gaps) if gaps else 1.0


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 6)
