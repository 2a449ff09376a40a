"""Annotators that are no people: rules and models answer tasks through the store, as a person does through the page."""

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from hf_rlhf.errors import InputError
from hf_rlhf.feedback.forms import PAIRWISE, RANKING, RATING, TIE, Form
from hf_rlhf.feedback.store import ANSWER, MODEL, SKIP, Event, FeedbackStore, new_uuid
from hf_rlhf.feedback.tasks import Task, canonical_json, shown_order
from hf_rlhf.judges.base import Judge
from hf_rlhf.judges.comparison import Comparison

PART = 16
"""Tasks about which a judge is asked at once; their answers are stored before the next ones are asked."""
_ANSWERS = uuid.UUID("5f0d3c1e-8a44-4e0b-9a59-6a1f6f6f4b52")  # the namespace of their uuids


class Annotator(Protocol):
    """Anybody who answers tasks."""

    @property
    def name(self) -> str:
        """The name under which the store has the answers."""
        ...

    @property
    def kind(self) -> str:
        """`person`, `rule` or `model`."""
        ...

    def answer(self, task: Task, order: Sequence[int]) -> Mapping[str, Any] | None:
        """Return an answer that the task's form allows, or None to skip it.

        `order` has the numbers of the completions as they are shown, the first one first.
        """
        ...


def annotate(
    store: FeedbackStore,
    annotator: Annotator,
    *,
    overlap: int = 1,
    limit: int | None = None,
    on_answer: Callable[[int], None] = lambda _: None,
) -> int:
    """Let an annotator answer or skip what the store has for them; return how many tasks that were.

    Args:
        store: asks, and keeps each answer when it is given.
        annotator: who answers.
        overlap: annotators of this kind that a task is asked of.
        limit: most tasks of this call; all that are left by default.
        on_answer: called with 1 after each.

    Raises `InvalidAnswer` for an answer that the form does not allow.
    """
    done = 0
    while limit is None or done < limit:
        task = store.next_task(annotator.name, kind=annotator.kind, overlap=overlap)
        if task is None:
            break
        order = shown_order(task.id, annotator.name, store.salt, len(task.completions))
        _append(store, task, annotator, annotator.answer(task, order), order)
        done += 1
        on_answer(1)
    return done


def _append(
    store: FeedbackStore, task: Task, annotator: Annotator, value: Mapping[str, Any] | None, order: Sequence[int]
) -> None:
    """Append an answer, or a skip, under a uuid that the same answer of the same annotator gets in every store."""
    kind = SKIP if value is None else ANSWER
    key = canonical_json([task.id, annotator.name, annotator.kind, value])
    event = Event(
        str(uuid.uuid5(_ANSWERS, key)), task.id, annotator.name, annotator.kind, kind, value=value, shown_order=order
    )
    number = store.append(event).number
    if number not in {each.number for each in store.current(task=task.id, annotator=annotator.name)}:
        store.append(replace(event, uuid=new_uuid()))  # it was given before, and taken back since


def annotate_tasks(
    store: FeedbackStore,
    annotators: Sequence[Annotator],
    tasks: Sequence[Task],
    *,
    overlap: int = 1,
    on_answer: Callable[[int], None] = lambda _: None,
) -> int:
    """Let several annotators answer some tasks of a store in turns, and return how many answers they gave.

    Each task gets answers until `overlap` annotators of any kind have it. Each annotator gets a like share of the
    tasks where `overlap` is smaller than their number, and the same share after a kill. A
    judge is asked about `PART` tasks at once.
    """
    takers, given = takers_of(store), 0
    for start in range(0, len(tasks), PART):
        asked: list[tuple[Task, Annotator]] = []
        for place, task in enumerate(tasks[start : start + PART], start):
            have, first = takers.setdefault(task.id, set()), place * overlap % len(annotators)
            for each in (*annotators[first:], *annotators[:first]):
                if each.name not in have and len(have) < overlap:
                    asked.append((task, each))
                    have.add(each.name)
        for task, each, value, order in _answered(store, asked):
            _append(store, task, each, value, order)
            given += 1
            on_answer(1)
    return given


def _answered(
    store: FeedbackStore, asked: Sequence[tuple[Task, Annotator]]
) -> Iterator[tuple[Task, Annotator, Mapping[str, Any] | None, Sequence[int]]]:
    """Yield each task with its annotator, the answer and the order in which completions were shown."""
    judges = {each.name: each for _, each in asked if isinstance(each, JudgeAnnotator)}
    at_once = {
        name: iter(judge.answers([task for task, each in asked if each.name == name])) for name, judge in judges.items()
    }
    for task, each in asked:
        order = shown_order(task.id, each.name, store.salt, len(task.completions))
        value = next(at_once[each.name]) if each.name in at_once else each.answer(task, order)
        yield task, each, value, order


def takers_of(store: FeedbackStore) -> dict[str, set[str]]:
    """Return the names of those who have answered, skipped or flagged each task."""
    takers: dict[str, set[str]] = {}
    for event in store.current():
        takers.setdefault(event.task, set()).add(event.annotator)
    return takers


@dataclass(frozen=True)
class JudgeAnnotator:
    """A judge as an annotator of kind model. It answers pairwise, ranking and rating forms.

    It sees each pair in both orders, and calls it a tie where they disagree. Its certainty is not how much better a
    completion is, so each preference has strength 1. An answer of the judge that cannot be read skips the task.

    Args:
        judge: compares and rates.
    """

    judge: Judge
    kind: str = MODEL

    @property
    def name(self) -> str:
        """The name of the judge."""
        return self.judge.name

    def answer(self, task: Task, order: Sequence[int]) -> dict[str, Any] | None:
        """Return the judge's answer; see `Annotator.answer`. Raises `InputError` for a form that no judge answers."""
        return self.answers([task])[0]

    def answers(self, tasks: Sequence[Task]) -> list[dict[str, Any] | None]:
        """Return the answers to several tasks, about which the judge is asked at once. Raises as `answer` does."""
        for task in tasks:
            require_answered_by_judge(task.form)
        pairs = [task for task in tasks if task.form.kind == PAIRWISE]
        others = [(task, completion) for task in tasks if task.form.kind != PAIRWISE for completion in task.completions]
        comparisons: Sequence[Comparison] = ()
        ratings: Sequence[float | None] = ()
        if pairs:
            comparisons = self.judge.compare(
                [task.prompt for task in pairs],
                [task.completions[0] for task in pairs],
                [task.completions[1] for task in pairs],
                [task.form.question or self.judge.question for task in pairs],
            )
        if others:
            ratings = self.judge.rate([task.prompt for task, _ in others], [completion for _, completion in others])
        preferred, rated = iter(comparisons), iter(ratings)
        return [
            _preference(next(preferred))
            if task.form.kind == PAIRWISE
            else _of_ratings(task.form, [next(rated) for _ in task.completions])
            for task in tasks
        ]


def _preference(comparison: Comparison) -> dict[str, Any] | None:
    """Return the answer to a pair that a judge has compared."""
    if comparison.preference is None:
        return None
    if comparison.preference == 0.5:
        return {"preferred": TIE}
    return {"preferred": 0 if comparison.preference == 1.0 else 1, "strength": 1}


def _of_ratings(form: Form, ratings: Sequence[float | None]) -> dict[str, Any] | None:
    """Return the answer to a ranking or a rating of which a judge has rated the completions from 1 to 5."""
    numbers = [rating for rating in ratings if rating is not None]
    if len(numbers) < len(ratings):
        return None
    if form.kind == RANKING:
        return {"ranks": ranks_of(numbers)}
    return {"ratings": {form.criteria[0]: [1 + round((number - 1) / 4 * (form.points - 1)) for number in numbers]}}


def require_answered_by_judge(form: Form) -> None:
    """Raise `InputError` for a form that no judge answers."""
    if form.kind not in (PAIRWISE, RANKING, RATING) or (form.kind == RATING and len(form.criteria) > 1):
        asked = f"{form.kind} with {len(form.criteria)} criteria" if form.kind == RATING else form.kind
        raise InputError(
            f"form={asked} is invalid for a judge: it compares and rates, by one criterion. Use {PAIRWISE}, {RANKING}"
            f" or {RATING}."
        )


def ranks_of(numbers: Sequence[float], alike: float = 0.0) -> list[int]:
    """Return ranks from numbers of which a higher one is better: 1 is the best.

    Neighbors in that order share a rank where they differ by no more than `alike`.
    """
    ranks, rank = [0] * len(numbers), 0
    best_first = sorted(range(len(numbers)), key=lambda number: -numbers[number])
    for place, number in enumerate(best_first):
        if place == 0 or numbers[best_first[place - 1]] - numbers[number] > alike:
            rank += 1
        ranks[number] = rank
    return ranks
