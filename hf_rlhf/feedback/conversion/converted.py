"""A store of answers as rows to train on, and a report on what gave none.

| answer | preferences | other rows |
|---|---|---|
| pairwise | chosen and rejected; ties and both bad give none | both bad: two labels, false |
| ranking | each two completions of different ranks | rated completions, by rank |
| rating | two completions of a prompt that one annotator rated differently | rated completions, labels |
| correction | the corrected text against the original | a demonstration |
| span | | spans with their offsets |
| custom | as a rating, where the form says what to read as one | its fields |
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from hf_rlhf.feedback.conversion.completion_rows import (
    demonstration_rows,
    label_rows,
    labels_of,
    ranking_rows,
    rating_rows,
)
from hf_rlhf.feedback.conversion.majority import provenance
from hf_rlhf.feedback.conversion.preference_rows import preference_rows
from hf_rlhf.feedback.conversion.questions import Answer, Item, Layout
from hf_rlhf.feedback.conversion.rules import ConversionRules
from hf_rlhf.feedback.conversion.votes import (
    PairVote,
    Rated,
    correction_of,
    pairwise_votes,
    ratings_of,
    votes_of_ratings,
)
from hf_rlhf.feedback.forms import CORRECTION, CUSTOM, RANKING, SPAN
from hf_rlhf.feedback.store import ANSWER, FLAG, SKIP, Event, FeedbackStore
from hf_rlhf.feedback.tasks import Task, text_of

Rows = list[dict[str, Any]]
NOT_UTF8 = "half of a character, which UTF-8 lacks"


@dataclass(frozen=True)
class Converted:
    """Rows in TRL's formats, each with `annotators`, `n`, `agreement`, `sources` and `event_ids`.

    Attributes:
        preferences: `prompt`, `chosen`, `rejected`, and `margin` in all rows or in none.
        demonstrations: `prompt` and `completion` for SFT.
        labels: `prompt`, `completion` and `label`, as KTO takes them.
        ratings: `prompt`, `completions` and `ratings`; a higher one is better.
        rankings: the same, where a rating is a negative rank.
        spans: `prompt`, `completion` and `spans` with offsets in characters of the completion.
        custom: `prompt`, `completions` and the `fields` of a custom form, one row for each answer.
        report: counts of what was used, and of what gave no row and why.
    """

    preferences: Rows
    demonstrations: Rows
    labels: Rows
    ratings: Rows
    rankings: Rows
    spans: Rows
    custom: Rows
    report: dict[str, Any]


def convert(store: FeedbackStore, rules: ConversionRules | None = None) -> Converted:
    """Return the answers of a store as rows; the same log gives the same rows, in the same order.

    Answers to gold questions are never used.
    """
    rules = rules or ConversionRules()
    answers, layout, counts = _usable(store, rules)
    ratings, votes, corrected = _read(answers, layout, rules)
    preferences, no_pairs, both_bad = preference_rows(votes, rules)
    labels, no_labels = label_rows(labels_of(ratings, both_bad), rules)
    demonstrations, no_demonstrations = demonstration_rows(corrected)
    rated, no_ratings, scale = rating_rows(ratings, rules)
    of_kind = {kind: [a for a in answers if a.question.task.form.kind == kind] for kind in (RANKING, SPAN, CUSTOM)}
    ranked, no_ranks = ranking_rows(of_kind[RANKING])
    made = {
        "preferences": (preferences, no_pairs),
        "demonstrations": (demonstrations, no_demonstrations),
        "labels": (labels, no_labels),
        "ratings": (rated, no_ratings),
        "rankings": (ranked, no_ranks),
        "spans": (_span_rows(of_kind[SPAN]), Counter()),
        "custom": (_custom_rows(of_kind[CUSTOM]), Counter()),
    }
    made = {name: _in_utf8(rows, omitted) for name, (rows, omitted) in made.items()}
    report = {
        **counts,
        "layout": "messages" if layout.conversational else "text",
        **({"rating_scale": scale} if rated else {}),
        "rows": {name: len(rows) for name, (rows, _) in made.items()},
        "omitted": {name: dict(sorted(omitted.items())) for name, (_, omitted) in made.items() if omitted},
    }
    return Converted(**{name: rows for name, (rows, _) in made.items()}, report=report)


def _usable(store: FeedbackStore, rules: ConversionRules) -> tuple[list[Answer], Layout, dict[str, Any]]:
    """Return the answers that may become rows, in the order of tasks and log, and counts of the others."""
    tasks = list(store.tasks())
    by_task: dict[str, list[Event]] = {}
    counts, flagged = Counter[str](), set[str]()
    for event in store.current():
        if event.kind == FLAG:  # of whoever it is: that a text is private does not depend on whose answers are used
            flagged.add(event.task)
        if event.annotator_kind not in rules.annotator_kinds or event.annotator in rules.excluded_annotators:
            counts[f"{event.kind} of an annotator that is not asked for"] += 1
            continue
        if event.kind == ANSWER:
            by_task.setdefault(event.task, []).append(event)
        counts[event.kind] += 1
    used: list[tuple[Task, Event]] = []
    for task in tasks:
        given = by_task.get(task.id, [])
        if task.gold is not None:
            counts["gold"] += len(given)
        elif task.id in flagged and not rules.include_flagged:
            counts["flagged"] += len(given)
        else:
            used += [(task, event) for event in given]
    layout = Layout.of((task for task, _ in used), rules.separator)
    questions = {task.id: layout.question(task) for task in {task.id: task for task, _ in used}.values()}
    answers = [Answer(questions[task.id], event) for task, event in used]
    lost = {name for each in questions.values() for name in set(each.task.columns) - set(each.columns)}
    report = {
        "tasks": len(tasks),
        "tasks_answered": len(questions),
        "annotators": sorted({answer.event.annotator for answer in answers}),
        "answers": len(answers),
        "answers_to_gold": counts["gold"],
        "answers_to_flagged_tasks": counts["flagged"],
        "answers_of_excluded_annotators": counts[f"{ANSWER} of an annotator that is not asked for"],
        "skips": counts[SKIP],
        "flags": counts[FLAG],
        **({"columns_omitted": sorted(lost)} if lost else {}),
    }
    return answers, layout, report


def _read(
    answers: Iterable[Answer], layout: Layout, rules: ConversionRules
) -> tuple[list[Rated], list[PairVote], list[tuple[Answer, Item]]]:
    """Return the ratings, the votes on pairs, and the corrected completions that the answers hold."""
    ratings: list[Rated] = []
    votes: list[PairVote] = []
    corrected: list[tuple[Answer, Item]] = []
    rated_by: dict[tuple[str, str], list[Rated]] = {}
    for answer in answers:
        votes += pairwise_votes(answer, rules)
        for rated in ratings_of(answer):
            ratings.append(rated)
            rated_by.setdefault((rated.question.key, rated.event.annotator), []).append(rated)
        if answer.question.task.form.kind == CORRECTION:
            item, vote = correction_of(answer, layout)
            corrected.append((answer, item))
            votes += [vote] if vote else []
    for group in rated_by.values():
        votes += votes_of_ratings(group, rules)
    return ratings, votes, corrected


def _span_rows(answers: Iterable[Answer]) -> Rows:
    rows = []
    for question, event in answers:
        text = text_of(question.task.completions[0])
        spans = [{**span, "text": text[span["start"] : span["end"]]} for span in (event.value or {})["spans"]]
        shown = {"prompt": question.prompt, "completion": text, "spans": spans}
        rows.append({**shown, **question.columns, **provenance([event], 1.0, [question.items[0].source])})
    return rows


def _custom_rows(answers: Iterable[Answer]) -> Rows:
    rows = []
    for question, event in answers:
        shown = {"prompt": question.prompt, "completions": [item.completion for item in question.items]}
        fields, sources = {"fields": (event.value or {})["fields"]}, [item.source for item in question.items]
        rows.append({**shown, **fields, **question.columns, **provenance([event], 1.0, sources)})
    return rows


def _in_utf8(rows: Rows, omitted: Counter[str]) -> tuple[Rows, Counter[str]]:
    """Drop rows with half of a surrogate pair, which neither a file in UTF-8 nor a tokenizer holds."""
    kept = [row for row in rows if _is_utf8(row)]
    return kept, omitted + Counter({NOT_UTF8: len(rows) - len(kept)})


def _is_utf8(row: dict[str, Any]) -> bool:
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True
