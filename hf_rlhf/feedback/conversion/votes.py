"""Votes on two completions, and ratings of one, that an answer holds."""

import difflib
import re
from collections.abc import Iterable, Iterator
from itertools import combinations
from typing import NamedTuple

from hf_rlhf.feedback.conversion.questions import Answer, Item, Layout, Question
from hf_rlhf.feedback.conversion.rules import ConversionRules
from hf_rlhf.feedback.forms import BOTH_BAD, CUSTOM, PAIRWISE, RANKING, RATING, TIE, Form
from hf_rlhf.feedback.store import Event
from hf_rlhf.feedback.tasks import text_of

FIRST, SECOND = "first", "second"


class PairVote(NamedTuple):
    """Vote of one annotator on two completions of a prompt: first, second, tie or both_bad is the outcome.

    `margin` is None where the form asks for none. A preference between two ratings comes from two events.
    """

    question: Question
    first: Item
    second: Item
    outcome: str
    margin: float | None
    events: tuple[Event, ...]


class Rated(NamedTuple):
    """One rating of one completion, from 1 to `points`; `criteria` has those that it is the mean of."""

    question: Question
    item: Item
    rating: float
    points: int
    criteria: dict[str, float]
    event: Event

    @property
    def share(self) -> float:
        """The place on its scale, from 0 to 1."""
        return (self.rating - 1) / (self.points - 1)


def pairwise_votes(answer: Answer, rules: ConversionRules) -> Iterator[PairVote]:
    """Yield the vote of an answer to the pairwise form, or those of a ranking: one for each two completions."""
    question, event = answer
    form, value = question.task.form, event.value or {}
    if form.kind == PAIRWISE:
        preferred = value["preferred"]
        first, second = question.items
        if preferred in (TIE, BOTH_BAD):
            yield PairVote(question, first, second, preferred, 0.0, (event,))
        else:
            margin = rules.margin_of(value["strength"], form.strengths)
            yield PairVote(question, first, second, (FIRST, SECOND)[preferred], margin, (event,))
    elif form.kind == RANKING:
        for first, second in combinations(range(len(question.items)), 2):
            lead = value["ranks"][second] - value["ranks"][first]
            outcome = TIE if not lead else FIRST if lead > 0 else SECOND
            margin = abs(lead) / (len(question.items) - 1)
            yield PairVote(question, question.items[first], question.items[second], outcome, margin, (event,))


def ratings_of(answer: Answer) -> list[Rated]:
    """Return the ratings of an answer to the rating form, or to a custom form that reads as one; else none."""
    question, event = answer
    form, value = question.task.form, event.value or {}
    if form.kind == RATING:
        made = []
        for number, item in enumerate(question.items):
            criteria = {name: float(value["ratings"][name][number]) for name in form.criteria}
            mean = sum(criteria.values()) / len(criteria)
            made.append(Rated(question, item, mean, form.points, criteria if len(criteria) > 1 else {}, event))
        return made
    if form.kind == CUSTOM and form.reads_as and len(question.items) == 1:
        rating = _weighted(form, value["fields"])
        return [] if rating is None else [Rated(question, question.items[0], rating, form.points, {}, event)]
    return []


def _weighted(form: Form, fields: dict[str, int]) -> float | None:
    """Return the weighted mean of scales as a rating; a negative weight turns its scale round. None where one lacks."""
    scales = {field.name: field for field in form.fields}
    total = weights = 0.0
    for name, weight in form.reads_as:
        if name not in fields:
            return None
        share = (fields[name] - scales[name].low) / (scales[name].high - scales[name].low)
        total += abs(weight) * (share if weight >= 0 else 1 - share)
        weights += abs(weight)
    return 1 + (form.points - 1) * total / weights if weights else None


def votes_of_ratings(ratings: Iterable[Rated], rules: ConversionRules) -> Iterator[PairVote]:
    """Yield the votes between the ratings that one annotator gave to different completions of the same prompt.

    A completion that was rated twice counts with its mean. The margin is the difference as a share of the scale.
    """
    by_item: dict[str, list[Rated]] = {}
    for rated in ratings:
        by_item.setdefault(rated.item.key, []).append(rated)
    shares = {key: sum(rated.share for rated in found) / len(found) for key, found in by_item.items()}
    for one, other in combinations(by_item, 2):
        step = 1 / (min(rated.points for rated in (*by_item[one], *by_item[other])) - 1)
        lead = shares[one] - shares[other]
        differs = abs(lead) >= rules.min_rating_difference * step - 1e-9
        outcome = TIE if not differs else FIRST if lead > 0 else SECOND
        events = {rated.event.uuid: rated.event for rated in (*by_item[one], *by_item[other])}
        first, second = by_item[one][0], by_item[other][0]
        yield PairVote(first.question, first.item, second.item, outcome, abs(lead), tuple(events.values()))


def correction_of(answer: Answer, layout: Layout) -> tuple[Item, PairVote | None]:
    """Return the corrected completion, and the vote for it against the original.

    There is no vote where one character of whitespace is all that was edited. The margin is the share of the text that
    was.
    """
    question, event = answer
    original = question.items[0]
    corrected = layout.item(question.task.prompt, (event.value or {})["text"], event.annotator)
    before, after = text_of(original.completion), text_of(corrected.completion)
    if before == after or _is_one_space(before, after):
        return corrected, None
    old, new = (re.findall(r"\s+|\S+", text) for text in (before, after))
    margin = 1 - difflib.SequenceMatcher(None, old, new).ratio()
    return corrected, PairVote(question, corrected, original, FIRST, margin, (event,))


def _is_one_space(before: str, after: str) -> bool:
    shorter = min(len(before), len(after))
    start = next((n for n in range(shorter) if before[n] != after[n]), shorter)
    end = next((n for n in range(shorter - start) if before[-1 - n] != after[-1 - n]), shorter - start)
    removed, added = before[start : len(before) - end], after[start : len(after) - end]
    return max(len(removed), len(added)) < 2 and (removed + added).isspace()
