"""Records of Argilla 2, as its `dataset.records.to_json(path)` writes them, and a store as such records.

A record is `{"id", "fields", "metadata", "suggestions", "responses"}`, where `responses` maps the name of a question
to `[{"value", "user_id"}]`, perhaps with a `status`. The settings of the dataset are not in the file, so a question
is told by its values: a label that names a field is a preference, a whole number a rating, a list of names a ranking,
a list of offsets spans, and other text a correction.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeGuard

from hf_rlhf.errors import InputError
from hf_rlhf.feedback.forms import CORRECTION, PAIRWISE, RANKING, RATING, SPAN, Form
from hf_rlhf.feedback.imports.imported import (
    BY_COMMON_NAMES,
    FLAGGED,
    WITHOUT_FORM,
    FieldNames,
    Imported,
    points_of,
    preference,
    side_of,
    unnamed,
)
from hf_rlhf.feedback.store import ANSWER, FLAG, MODEL, PERSON, SKIP, Event, FeedbackStore
from hf_rlhf.feedback.tasks import Task

STRENGTH, PREFERENCE, CORRECTED, SPANS = "strength", "preference", "correction", "spans"


def from_argilla(
    records: Iterable[tuple[str, Mapping[str, Any]]], names: FieldNames = BY_COMMON_NAMES, *, suggestions: bool = False
) -> Imported:
    """Return the tasks and answers of records.

    A question `strength` beside a preference is its strength. Drafts are omitted, and discarded records are skips.

    Args:
        records: each with the place that errors name, as `hf_rlhf.data.json_files.read_records` gives them.
        names: of the fields.
        suggestions: take those as answers of a model too.

    Raises `InputError` for a record that is none, and for values that no form here takes.
    """
    made, records = Imported(), list(records)
    for where, record in records:
        if not isinstance(record.get("fields"), Mapping):
            raise InputError(f"{where} is no record of Argilla: it has no fields. Export the records with to_json.")
    points = points_of((v for _, r in records for q, v, *_ in _responses(r, suggestions) if q != STRENGTH and _is_rating(v)), "the file")  # fmt: skip
    labels = sorted(
        {s["label"] for _, r in records for _, v, *_ in _responses(r, suggestions) if _is_spans(v) for s in v}
    )
    for where, record in records:
        _read(made, record, names, where, points, labels, suggestions)
    return made


def _responses(record: Mapping[str, Any], suggestions: bool) -> Iterator[tuple[str, Any, str, str, str]]:
    """Yield (question, value, annotator, kind of annotator, status)."""
    for question, responses in (record.get("responses") or {}).items():
        for place, each in enumerate(responses or (), start=1):
            by = each.get("user_id")
            name = unnamed(place) if by is None else str(by)
            yield question, each.get("value"), name, PERSON, each.get("status") or "submitted"
    if suggestions:
        for question, each in (record.get("suggestions") or {}).items():
            yield question, each.get("value"), str(each.get("agent") or "suggestion"), MODEL, "submitted"


def _read(
    made: Imported,
    record: Mapping[str, Any],
    names: FieldNames,
    where: str,
    points: int,
    labels: Sequence[str],
    suggestions: bool,
) -> None:
    prompt, completions, others = names.split(record["fields"], where)
    columns = {**others, **(record.get("metadata") or {})}
    given = list(_responses(record, suggestions))
    strengths = {annotator: value for question, value, annotator, *_ in given if question == STRENGTH}
    ratings: dict[tuple[str, str], dict[str, int]] = {}
    if not given:
        made.omitted["records without responses"] += 1
    for question, value, annotator, kind, status in given:
        if status == "draft":
            made.omitted["drafts"] += 1
        elif question == STRENGTH and any(side_of(str(v), list(completions)) is not None for q, v, *_ in given if q != STRENGTH):  # fmt: skip
            continue
        elif _is_rating(value) and len(completions) == 1 and status != "discarded":
            ratings.setdefault((annotator, kind), {})[question] = int(value)
        else:
            form, answer = _form_of(value, list(completions), labels, strengths, annotator)
            if form is None:
                made.omitted[f"answers to the question {question}"] += 1
                continue
            task = made.task(form, prompt, completions.values(), columns, where)
            what = SKIP if status == "discarded" else ANSWER
            made.answer(task, annotator, answer, f"{where}, question {question}", kind=what, annotator_kind=kind)
    for (annotator, kind), rated in ratings.items():
        form = Form(RATING, criteria=tuple(sorted(rated)), points=points)
        task = made.task(form, prompt, completions.values(), columns, where)
        value = {"ratings": {name: [rated[name]] for name in form.criteria}}
        made.answer(task, annotator, value, where, annotator_kind=kind)


def _form_of(
    value: Any, names: list[str], labels: Sequence[str], strengths: Mapping[str, Any], annotator: str
) -> tuple[Form | None, Any]:
    """Return the form that a value answers, and the answer; None for a value of no form here."""
    if isinstance(value, str) and len(names) == 2 and (side := side_of(value, names)) is not None:
        return Form(PAIRWISE, strengths=3 if strengths else 1), preference(side, strengths.get(annotator))
    if isinstance(value, str) and len(names) == 1:
        return Form(CORRECTION), {"text": value}
    if _is_spans(value) and len(names) == 1:
        spans = [{key: span[key] for key in ("start", "end", "label")} for span in value]
        return Form(SPAN, labels=tuple(labels) or ("span",)), {"spans": spans}
    if (ranks := _ranks(value, names)) is not None:
        return Form(RANKING), {"ranks": ranks}
    return None, None


def _ranks(value: Any, names: list[str]) -> list[int] | None:
    """Return the rank of each name: from a list of names, the best first, or of names with ranks."""
    if not isinstance(value, list) or len(names) < 2:
        return None
    if all(isinstance(each, Mapping) and {"value", "rank"} <= set(each) for each in value):
        ranks = {each["value"]: each["rank"] for each in value}
    else:
        ranks = {each: place for place, each in enumerate(value, start=1) if isinstance(each, str)}
    return [ranks[name] for name in names] if set(ranks) == set(names) else None


def _is_rating(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_spans(value: Any) -> TypeGuard[list[dict[str, Any]]]:
    return isinstance(value, list) and all(isinstance(each, Mapping) and {"start", "end", "label"} <= set(each) for each in value)  # fmt: skip


def to_argilla(store: FeedbackStore) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Return the tasks of a store as records, and how many tasks were omitted, by the reason.

    A flagged task is omitted, as are gold questions and forms that Argilla lacks.
    `user_id` is the name of the annotator: Argilla asks for the ids of its own users when such records are logged.
    """
    by_task: dict[str, list[Event]] = {}
    flagged: set[str] = set()
    for event in store.current():
        if event.kind == FLAG:
            flagged.add(event.task)
        if event.kind == ANSWER:
            by_task.setdefault(event.task, []).append(event)
    records, omitted = [], Counter[str]()
    for task in store.tasks():
        if task.id in flagged:
            omitted[FLAGGED] += 1
            continue
        fields = {f"completion_{n}": each for n, each in enumerate(task.completions, start=1)}
        if task.gold is not None or task.form.kind not in (PAIRWISE, RANKING, RATING, CORRECTION, SPAN) or (task.form.kind == RATING and len(fields) > 1):  # fmt: skip
            omitted[WITHOUT_FORM] += 1
            continue
        responses: dict[str, list[dict[str, Any]]] = {}
        for event in by_task.get(task.id, ()):
            for question, value in _values(task, event.value or {}, list(fields)):
                responses.setdefault(question, []).append({"value": value, "user_id": event.annotator})
        made = {"id": task.id, "fields": {"prompt": task.prompt, **fields}, "metadata": dict(task.columns)}
        records.append({**made, "suggestions": {}, "responses": responses, "vectors": {}})
    return records, omitted


def _values(task: Task, value: Mapping[str, Any], names: list[str]) -> Iterator[tuple[str, Any]]:
    kind = task.form.kind
    if kind == PAIRWISE:
        preferred = value["preferred"]
        yield PREFERENCE, names[preferred] if preferred in (0, 1) else preferred
        if preferred in (0, 1) and task.form.strengths > 1:
            yield STRENGTH, value["strength"]
    elif kind == RANKING:
        yield RANKING, [{"value": name, "rank": rank} for name, rank in zip(names, value["ranks"], strict=True)]
    elif kind == RATING:
        yield from ((name, given[0]) for name, given in value["ratings"].items())
    elif kind == CORRECTION:
        yield CORRECTED, value["text"]
    else:
        yield SPANS, value["spans"]
