"""Annotators around a rating function: simulated people with noise, bias and tastes, and plain rules."""

import hashlib
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hf_rlhf.feedback.annotators import ranks_of
from hf_rlhf.feedback.forms import (
    BOTH_BAD,
    CHECKBOX,
    CHOICE,
    CORRECTION,
    CUSTOM,
    PAIRWISE,
    RANKING,
    RATING,
    SCALE,
    SPAN,
    TIE,
    Field,
)
from hf_rlhf.feedback.store import RULE
from hf_rlhf.feedback.tasks import Task, canonical_json

Rate = Callable[[Task, int], float | None]
"""Returns the rating of a completion of a task, by its number, from 0 to 1; None for one that it cannot rate."""

FINISHED = "finished"
"""Column of a task: for each completion, whether it ended by itself and was not cut off."""

_EULER = 0.5772156649015329  # the mean of a Gumbel distribution


@dataclass(frozen=True)
class RuleAnnotator:
    """An annotator who answers every form by a rating of each completion.

    What this annotator sees in a completion is

        opinion = rate + taste * N(0, 1), the same whenever the text is seen
        seen    = opinion + position_bias * (1 at the first place, 0 at the last) + noise * Gumbel(0, 1)

    so a comparison is one of Bradley and Terry, P(a preferred) = sigmoid((opinion_a - opinion_b + bias) / noise), and a
    ranking is one of Plackett and Luce. All draws come from (seed, name, task), or (seed, name, text) for the taste.
    Without noise, bias and taste it is a plain rule.

    Args:
        rate: see `Rate`. A task of which a completion has no rating is skipped.
        name: in the store.
        seed: of all draws.
        noise: temperature of a choice, in units of the rating.
        position_bias: by how much the completion shown first seems better.
        taste: standard deviation of the annotator's own opinion of a text.
        tie_margin: opinions that differ by no more are a tie.
        bad_below: completions of a lower opinion are bad: both of a pair, or a span from end to end.
        strength_step: difference of opinions that makes a preference one level stronger.
        offset, scale: of the ratings that this annotator gives; `offset + scale * seen` from 0 to 1 is 1 to `points`.
        correct: writes a completion anew, for corrections; without it they are skipped.
    """

    rate: Rate
    name: str = "simulated"
    seed: int = 0
    noise: float = 0.0
    position_bias: float = 0.0
    taste: float = 0.0
    tie_margin: float = 0.0
    bad_below: float = 0.0
    strength_step: float = 0.2
    offset: float = 0.0
    scale: float = 1.0
    correct: Callable[[str], str] | None = None
    kind: str = RULE

    def __post_init__(self):
        for name in ("noise", "taste", "tie_margin"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name}={value} must be a finite number of at least 0")

    def answer(self, task: Task, order: Sequence[int]) -> dict[str, Any] | None:
        """Return the answer to a task, or None to skip it; see `Annotator.answer`."""
        opinions = self.opinions(task)
        if opinions is None:
            return None
        form = task.form
        if form.kind == PAIRWISE:
            return self._preference(task, order, opinions)
        if form.kind == RANKING:
            return {"ranks": ranks_of(self._seen(task, order, opinions), max(self.tie_margin, 1e-9))}
        if form.kind == RATING:
            return {"ratings": {name: self._ratings(task, order, opinions, name) for name in form.criteria}}
        if form.kind == CORRECTION:
            return None if self.correct is None else {"text": self.correct(task.texts[0])}
        if form.kind == SPAN:
            bad = opinions[0] < self.bad_below and task.texts[0]
            whole = {"start": 0, "end": len(task.texts[0]), "label": form.labels[0]}
            return {"spans": [whole] if bad else []}
        assert form.kind == CUSTOM
        seen = self._seen(task, order, opinions)
        mean = sum(seen) / len(seen)
        return {"fields": {field.name: _field_answer(field, mean) for field in form.fields}}

    def opinions(self, task: Task) -> list[float] | None:
        """Return this annotator's opinion of each completion; None where one has no rating."""
        ratings = [self.rate(task, number) for number in range(len(task.completions))]
        known = [rating for rating in ratings if rating is not None]
        if len(known) < len(ratings):
            return None
        if not self.taste:
            return known
        return [
            rating + self.taste * self._draws(text).gauss(0, 1) for rating, text in zip(known, task.texts, strict=True)
        ]

    def _preference(self, task: Task, order: Sequence[int], opinions: Sequence[float]) -> dict[str, Any]:
        if max(opinions) < self.bad_below:
            return {"preferred": BOTH_BAD}
        margin = opinions[0] - opinions[1]
        if abs(margin) <= max(self.tie_margin, 1e-9):
            return {"preferred": TIE}
        seen = self._seen(task, order, opinions)
        preferred = 0 if seen[0] > seen[1] else 1
        agreed = margin if preferred == 0 else -margin  # below 0 by noise or bias, against the own opinion
        strength = 1 + int(max(agreed, 0.0) / self.strength_step)
        return {"preferred": preferred, "strength": min(strength, task.form.strengths)}

    def _ratings(self, task: Task, order: Sequence[int], opinions: Sequence[float], criterion: str) -> list[int]:
        points = task.form.points
        given = (self.offset + self.scale * each for each in self._seen(task, order, opinions, criterion))
        return [_level(each, 1, points) for each in given]

    def _seen(self, task: Task, order: Sequence[int], opinions: Sequence[float], criterion: str = "") -> list[float]:
        """Return what the annotator sees in each completion at this time and place."""
        draws = self._draws(task.id, criterion)
        last, seen = len(opinions) - 1, list(opinions)
        for number in range(len(seen)):
            gumbel = -math.log(-math.log(max(draws.random(), 1e-300))) - _EULER
            place = list(order).index(number)
            seen[number] += self.noise * gumbel + (self.position_bias * (1 - place / last) if last else 0.0)
        return seen

    def _draws(self, *of: str) -> random.Random:
        key = canonical_json([self.seed, self.name, *of]).encode("utf-8", "surrogatepass")
        return random.Random(int.from_bytes(hashlib.sha256(key).digest(), "big"))


def panel(rate: Rate, size: int, *, seed: int = 0, name: str = "simulated", **settings: Any) -> list[RuleAnnotator]:
    """Return several annotators who disagree: each has an own seed, and gives ratings on an own scale.

    Args:
        rate: what they have in common.
        size: how many.
        seed: of the panel.
        name: theirs are `name_1`, `name_2` and so on; that of one alone is `name`.
        settings: of each, such as `noise` and `taste`; see `RuleAnnotator`.
    """
    if size == 1:
        return [RuleAnnotator(rate, name=name, seed=seed, **settings)]
    members = []
    for number in range(1, size + 1):
        draws = random.Random(f"{seed}/{name}/{number}")
        scale: dict[str, Any] = {"offset": draws.uniform(-0.1, 0.1), "scale": draws.uniform(0.8, 1.2)}
        members.append(RuleAnnotator(rate, name=f"{name}_{number}", seed=seed, **(scale | settings)))
    return members


def rate_texts(rate: Callable[[str, bool], float]) -> Rate:
    """Return the rating of a completion by its text, and whether it ended by itself (column `finished`)."""

    def by_text(task: Task, number: int) -> float:
        finished = task.columns.get(FINISHED)
        return rate(task.texts[number], bool(finished[number]) if finished else True)

    return by_text


def rate_by_column(task: Task, number: int) -> float | None:
    """Return the rating that the row gave a completion in its column `ratings`, such as a segment's true return."""
    ratings = task.columns.get("ratings")
    return None if ratings is None else float(ratings[number])


def _level(share: float, low: int, high: int) -> int:
    """Return the whole number of a scale that stands for a share from 0 to 1."""
    return low + round((high - low) * min(max(share, 0.0), 1.0))


def _field_answer(field: Field, seen: float) -> Any:
    """Return what a custom form's field says for what is seen in the completions, from 0 to 1."""
    if field.type == SCALE:
        return _level(seen, field.low, field.high)
    if field.type == CHOICE:
        return field.options[_level(seen, 0, len(field.options) - 1)]
    if field.type == CHECKBOX:
        return seen >= 0.5
    return "good" if seen >= 0.5 else "bad"
