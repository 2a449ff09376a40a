"""Tasks of Label Studio, as its JSON export writes them, and a store as such tasks.

A task is `{"data": {...}, "annotations": [{"completed_by", "result": [...], "was_cancelled", "lead_time"}]}`. Results
of the types pairwise, choices, rating, ranker, textarea and labels are read.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

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
from hf_rlhf.feedback.tasks import Task, text_of

STRENGTH = "strength"
_SIDES = {"left": 0, "right": 1}
Record = Mapping[str, Any]


def from_label_studio(
    records: Iterable[tuple[str, Record]], names: FieldNames = BY_COMMON_NAMES, *, predictions: bool = False
) -> Imported:
    """Return the tasks and answers of an export.

    In a pair, the field that comes first in `data`, or in `names`, is the left one. A rating named `strength` beside a
    preference is its strength. Cancelled annotations are skips.

    Args:
        records: each with the place that errors name, as `hf_rlhf.data.json_files.read_records` gives them.
        names: of the fields of `data`.
        predictions: take those as answers of a model too.

    Raises `InputError` for a record that is no task, and for values that no form here takes.
    """
    made, records = Imported(), list(records)
    for where, record in records:
        if not isinstance(record.get("data"), Mapping) or not isinstance(record.get("annotations", []), list):
            raise InputError(f"{where} is no task of Label Studio: it has no data. Export the project as JSON.")
    results = [each for _, record in records for *_, found in _annotations(record, predictions) for each in found]
    scale = points_of((r["value"]["rating"] for r in results if r["type"] == "rating" and r["from_name"] != STRENGTH), "the file")  # fmt: skip
    labels = tuple(sorted({label for each in results if each["type"] == "labels" for label in each["value"]["labels"]}))
    for where, record in records:
        _read(made, record, names, where, scale, labels, predictions)
    return made


def _annotations(record: Record, predictions: bool) -> Iterator[tuple[str, str, dict[str, Any], bool, list[Record]]]:
    """Yield (annotator, kind, details of the event, whether it was cancelled, results)."""
    for place, each in enumerate(record.get("annotations") or (), start=1):
        by = each.get("completed_by")
        by = by.get("email") or by.get("id") if isinstance(by, Mapping) else by
        name = unnamed(place) if by is None else str(by)
        details = {"seconds": each.get("lead_time"), "created": str(each.get("created_at") or "")}
        yield name, PERSON, details, bool(each.get("was_cancelled")), list(each.get("result") or ())
    if predictions:
        for each in record.get("predictions") or ():
            yield str(each.get("model_version") or "prediction"), MODEL, {}, False, list(each.get("result") or ())


def _read(
    made: Imported,
    record: Record,
    names: FieldNames,
    where: str,
    points: int,
    labels: tuple[str, ...],
    predictions: bool,
) -> None:
    data = dict(record["data"])
    items = data.pop("items", None)
    if isinstance(items, list) and all(isinstance(item, Mapping) and "id" in item for item in items):
        found = {
            str(item["id"]): next((item[key] for key in ("body", "text", "title") if key in item), "") for item in items
        }
        prompt, completions, others = FieldNames(names.prompt, tuple(found)).split({**data, **found}, where)
    else:
        prompt, completions, others = names.split(data, where)
    given = list(_annotations(record, predictions))
    if not given:
        made.omitted["tasks without annotations"] += 1
    for annotator, kind, details, cancelled, results in given:
        answers = list(_answers(made, results, completions, points, labels))
        if not answers and not results:
            made.omitted["annotations without a result"] += 1
        for form, value in answers:
            task = made.task(form, prompt, completions.values(), others, where)
            what = SKIP if cancelled else ANSWER
            made.answer(task, annotator, value, where, kind=what, annotator_kind=kind, **details)


def _answers(
    made: Imported, results: list[Record], completions: Mapping[str, Any], points: int, labels: tuple[str, ...]
) -> Iterator[tuple[Form, dict[str, Any]]]:
    """Yield the form and the value of each answer that the results of an annotation hold."""
    names = list(completions)
    strength = next(
        (r["value"]["rating"] for r in results if r["type"] == "rating" and r["from_name"] == STRENGTH), None
    )
    ratings: dict[str, int] = {}
    spans: list[dict[str, Any]] = []
    for result in results:
        kind, value, name = result.get("type"), result.get("value") or {}, str(result.get("from_name"))
        if kind in ("pairwise", "choices") and len(names) == 2 and (side := _side(value, names)) is not None:
            yield Form(PAIRWISE, strengths=1 if strength is None else 3), preference(side, strength)
        elif kind == "rating" and name == STRENGTH and len(names) == 2:
            continue
        elif kind == "rating" and len(names) == 1:
            ratings[name] = int(value["rating"])
        elif kind == "ranker" and (ranks := _ranks(value.get("ranker"), names)) is not None:
            yield Form(RANKING), {"ranks": ranks}
        elif kind == "textarea" and len(names) == 1 and len(value.get("text", ())) == 1:
            yield Form(CORRECTION), {"text": value["text"][0]}
        elif kind == "labels" and len(names) == 1:
            spans += _spans(value, text_of(completions[names[0]]))
        else:
            made.omitted[f"results of the type {kind}"] += 1
    if ratings:
        criteria = tuple(sorted(ratings))
        yield Form(RATING, criteria=criteria, points=points), {"ratings": {each: [ratings[each]] for each in criteria}}
    if spans:
        yield Form(SPAN, labels=labels), {"spans": spans}


def _side(value: Record, names: list[str]) -> int | str | None:
    if "selected" in value:
        return _SIDES.get(value["selected"])
    choices = value.get("choices") or []
    return side_of(choices[0], names) if len(choices) == 1 else None


def _ranks(order: Any, names: list[str]) -> list[int] | None:
    """Return the rank of each name: of a list, the best first, or of the one bucket that holds all."""
    if isinstance(order, Mapping):
        filled = [bucket for bucket in order.values() if bucket]
        order = filled[0] if len(filled) == 1 else None
    if not isinstance(order, list) or sorted(map(str, order)) != sorted(names):
        return None
    places = {str(name): place for place, name in enumerate(order, start=1)}
    return [places[name] for name in names]


def _spans(value: Record, text: str) -> list[dict[str, Any]]:
    """Return spans in code points. Label Studio counts as JavaScript does, where an emoji has the length 2."""
    start, end = int(value["start"]), int(value["end"])
    if "text" in value and text[start:end] != value["text"]:
        units = text.encode("utf-16-le")
        start, end = (len(units[: 2 * place].decode("utf-16-le", "ignore")) for place in (start, end))
    return [{"start": start, "end": end, "label": label} for label in value["labels"]]


def to_label_studio(store: FeedbackStore) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Return the tasks of a store as those of an export, and how many were omitted, by the reason.

    A flagged task is omitted, as are gold questions, and what has no form there: custom forms and ties of ranks.
    `completed_by` is the name of the annotator. A tie, or that both are bad, is a result of the type choices.
    """
    by_task: dict[str, list[Event]] = {}
    flagged: set[str] = set()
    for event in store.current():
        if event.kind == FLAG:
            flagged.add(event.task)
        if event.kind in (ANSWER, SKIP):
            by_task.setdefault(event.task, []).append(event)
    made, omitted = [], Counter[str]()
    for task in store.tasks():
        events = by_task.get(task.id, [])
        if task.id in flagged:
            omitted[FLAGGED] += 1
            continue
        if task.gold is not None or not _is_written(task, events):
            omitted[WITHOUT_FORM] += 1
            continue
        fields: dict[str, Any] = {f"completion_{n}": each for n, each in enumerate(task.completions, start=1)}
        shown = {"items": [{"id": name, "body": each} for name, each in fields.items()]} if task.form.kind == RANKING else fields  # fmt: skip
        annotations = [_annotation(task, event, list(fields)) for event in events]
        made.append(
            {"data": {"prompt": task.prompt, **shown, **task.columns}, "annotations": annotations, "predictions": []}
        )
    return made, omitted


def _is_written(task: Task, events: list[Event]) -> bool:
    kind = task.form.kind
    if kind == RATING:
        return len(task.completions) == 1
    if kind == RANKING:
        return all(len(set(event.value["ranks"])) == len(task.completions) for event in events if event.value)
    return kind in (PAIRWISE, CORRECTION, SPAN)


def _annotation(task: Task, event: Event, names: list[str]) -> dict[str, Any]:
    results = [] if event.kind == SKIP else list(_results(task, event.value or {}, names))
    made = {"completed_by": event.annotator, "was_cancelled": event.kind == SKIP, "created_at": event.created}
    return {**made, **({} if event.seconds is None else {"lead_time": event.seconds}), "result": results}


def _results(task: Task, value: Mapping[str, Any], names: list[str]) -> Iterator[dict[str, Any]]:
    def result(type: str, from_name: str, to_name: str, value: dict[str, Any]) -> dict[str, Any]:
        return {"from_name": from_name, "to_name": to_name, "type": type, "value": value}

    kind = task.form.kind
    if kind == PAIRWISE:
        side = value["preferred"]
        if side not in (0, 1):
            yield result("choices", "preference", names[0], {"choices": [side]})
            return
        yield result("pairwise", "preference", ",".join(names), {"selected": ("left", "right")[side]})
        if task.form.strengths > 1:
            yield result("rating", STRENGTH, names[0], {"rating": value["strength"]})
    elif kind == RANKING:
        order = sorted(range(len(names)), key=lambda number: value["ranks"][number])
        yield result("ranker", "ranking", "items", {"ranker": [names[number] for number in order]})
    elif kind == RATING:
        for name, given in value["ratings"].items():
            yield result("rating", name, names[0], {"rating": given[0]})
    elif kind == CORRECTION:
        yield result("textarea", "correction", names[0], {"text": [value["text"]]})
    else:
        text = task.texts[0]
        for span in value["spans"]:
            places = (len(text[:place].encode("utf-16-le")) // 2 for place in (span["start"], span["end"]))
            shown = {**dict(zip(("start", "end"), places, strict=True)), "text": text[span["start"] : span["end"]]}
            yield result("labels", "spans", names[0], {**shown, "labels": [span["label"]]})
