"""Forms of feedback: what is asked about a task, and which answers are allowed.

An answer names completions by their number in the task, never by their place on the screen. Its values:

- pairwise: `{"preferred": 0 | 1, "strength": 1..3}`, `{"preferred": "tie"}` or `{"preferred": "both_bad"}`
- ranking: `{"ranks": [2, 1, 1]}`, one per completion; 1 is the best, and equal ranks are ties
- rating: `{"ratings": {"quality": [4, 2]}}`, one per completion for each criterion; a higher one is better
- correction: `{"text": "..."}`, the corrected completion
- span: `{"spans": [{"start": 0, "end": 5, "label": "false"}]}`, in characters (Unicode code points) of the completion
- custom: `{"fields": {"tone": "warm", "length": 3}}`
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hf_rlhf.errors import InputError

PAIRWISE, RANKING, RATING, CORRECTION, SPAN, CUSTOM = "pairwise", "ranking", "rating", "correction", "span", "custom"
TIE, BOTH_BAD = "tie", "both_bad"
MAX_RANKED = 8
LONGEST_TEXT = 100_000
"""Characters of a text that an annotator writes."""

CHOICE, SCALE, TEXT, CHECKBOX = "choice", "scale", "text", "checkbox"


class InvalidAnswer(ValueError):
    """An answer that its form does not allow. The message says why."""


@dataclass(frozen=True)
class Field:
    """One field of a custom form.

    Attributes:
        name: its key in the answer.
        type: choice (one of `options`), scale (a whole number from `low` to `high`), text or checkbox.
        label: shown beside it; by default its name.
        required: an answer without it is not allowed.
    """

    name: str
    type: str
    label: str = ""
    options: tuple[str, ...] = ()
    low: int = 1
    high: int = 5
    required: bool = True


@dataclass(frozen=True)
class Form:
    """Question about the completions of a task.

    Attributes:
        kind: pairwise, ranking, rating, correction, span or custom.
        question: shown above the completions; by default one that fits the kind.
        strengths: levels of a pairwise preference: 3 asks how much better, 1 only which.
        criteria: what a rating rates, each from 1 to `points`.
        labels: of spans.
        fields: of a custom form.
        reads_as: how a custom form becomes a training signal: weights of its scale fields, whose weighted mean is
            a rating. Without them it is exported as columns alone.
    """

    kind: str = PAIRWISE
    question: str = ""
    strengths: int = 3
    criteria: tuple[str, ...] = ("quality",)
    points: int = 5
    labels: tuple[str, ...] = ()
    fields: tuple[Field, ...] = ()
    reads_as: tuple[tuple[str, float], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the form as JSON, without what has its default value."""
        default = asdict(Form())
        form = json.loads(json.dumps(asdict(self)))
        plain = json.loads(json.dumps(default))
        return {"kind": self.kind, **{name: value for name, value in form.items() if value != plain[name]}}


def form_from_json(content: Any, where: str = "form") -> Form:
    """Return the form that `Form.to_json` wrote, or that a user did. Raises `InputError` for a wrong one."""
    if isinstance(content, str):
        content = {"kind": content}
    if not isinstance(content, Mapping):
        raise _wrong(where, content, "it is no form", 'Give a kind, such as "pairwise", or a JSON object with it')
    known = Form.__dataclass_fields__
    if unknown := [str(key) for key in content if key not in known]:
        raise _wrong(where, unknown[0], "a form has no such key", f"The keys are {', '.join(known)}")
    values = dict(content)
    try:
        for name in ("criteria", "labels"):
            if name in values:
                values[name] = tuple(_names(values[name]))
        values["fields"] = tuple(_field(field, where) for field in values.get("fields", ()))
        reads_as = values.get("reads_as", ())
        pairs = reads_as.items() if isinstance(reads_as, Mapping) else reads_as
        values["reads_as"] = tuple((str(name), float(weight)) for name, weight in pairs)
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise _wrong(where, content, str(error), "Mend it") from error
    form = Form(**values)
    _require_sound(form, where)
    return form


def check_answer(form: Form, completions: Sequence[str], value: Any) -> dict[str, Any]:
    """Return the answer in its one normal form.

    Args:
        form: of the task.
        completions: the text of each.
        value: what the annotator gave.

    Raises `InvalidAnswer` for anything that the form does not allow.
    """
    if not isinstance(value, Mapping):
        raise InvalidAnswer("an answer is a JSON object")
    return _CHECKS[form.kind](form, completions, value)


def _pairwise(form: Form, completions: Sequence[str], value: Mapping[str, Any]) -> dict[str, Any]:
    preferred = value.get("preferred")
    if preferred in (TIE, BOTH_BAD):
        _require_keys(value, "preferred")
        return {"preferred": preferred}
    _require_keys(value, "preferred", "strength")
    if isinstance(preferred, bool) or not isinstance(preferred, int) or preferred not in (0, 1):
        raise InvalidAnswer(f"preferred is 0, 1, {TIE} or {BOTH_BAD}")
    strength = _whole(value.get("strength", 1), 1, form.strengths, "strength")
    return {"preferred": preferred, "strength": strength}


def _ranking(form: Form, completions: Sequence[str], value: Mapping[str, Any]) -> dict[str, Any]:
    _require_keys(value, "ranks")
    ranks = value.get("ranks")
    if not isinstance(ranks, list) or len(ranks) != len(completions):
        raise InvalidAnswer(f"ranks is a list of {len(completions)} numbers")
    ranks = [_whole(rank, 1, len(completions), "a rank") for rank in ranks]
    places = {rank: place for place, rank in enumerate(sorted(set(ranks)), start=1)}
    return {"ranks": [places[rank] for rank in ranks]}


def _rating(form: Form, completions: Sequence[str], value: Mapping[str, Any]) -> dict[str, Any]:
    _require_keys(value, "ratings")
    ratings = value.get("ratings")
    if not isinstance(ratings, Mapping) or set(ratings) != set(form.criteria):
        raise InvalidAnswer(f"ratings has the keys {', '.join(form.criteria)}")
    checked = {}
    for name in form.criteria:
        given = ratings[name]
        if not isinstance(given, list) or len(given) != len(completions):
            raise InvalidAnswer(f"ratings.{name} is a list of {len(completions)} numbers")
        checked[name] = [_whole(rating, 1, form.points, name) for rating in given]
    return {"ratings": checked}


def _correction(form: Form, completions: Sequence[str], value: Mapping[str, Any]) -> dict[str, Any]:
    _require_keys(value, "text")
    return {"text": _text(value.get("text"), "text", required=True)}


def _span(form: Form, completions: Sequence[str], value: Mapping[str, Any]) -> dict[str, Any]:
    _require_keys(value, "spans")
    spans, length = value.get("spans"), len(completions[0])
    if not isinstance(spans, list):
        raise InvalidAnswer("spans is a list")
    checked = []
    for span in spans:
        if not isinstance(span, Mapping):
            raise InvalidAnswer("a span has start, end and label")
        _require_keys(span, "start", "end", "label")
        start = _whole(span.get("start"), 0, length, "start")
        end = _whole(span.get("end"), start + 1, length, "end")
        if span.get("label") not in form.labels:
            raise InvalidAnswer(f"the label of a span is one of {', '.join(form.labels)}")
        checked.append({"start": start, "end": end, "label": span["label"]})
    unique = {(span["start"], span["end"], span["label"]): span for span in checked}
    return {"spans": [unique[key] for key in sorted(unique)]}


def _custom(form: Form, completions: Sequence[str], value: Mapping[str, Any]) -> dict[str, Any]:
    _require_keys(value, "fields")
    given = value.get("fields")
    if not isinstance(given, Mapping):
        raise InvalidAnswer("fields is a JSON object")
    _require_keys(given, *(field.name for field in form.fields))
    checked = {}
    for field in form.fields:
        content = given.get(field.name)
        if content is None or content == "":
            if field.required and field.type != CHECKBOX:
                raise InvalidAnswer(f"{field.name} is missing")
            continue
        checked[field.name] = _field_value(field, content)
    return {"fields": checked}


def _field_value(field: Field, content: Any) -> Any:
    if field.type == SCALE:
        return _whole(content, field.low, field.high, field.name)
    if field.type == TEXT:
        return _text(content, field.name, required=field.required)
    if field.type == CHECKBOX:
        if not isinstance(content, bool):
            raise InvalidAnswer(f"{field.name} is true or false")
        return content
    if content not in field.options:
        raise InvalidAnswer(f"{field.name} is one of {', '.join(field.options)}")
    return content


_CHECKS: dict[str, Callable[[Form, Sequence[str], Mapping[str, Any]], dict[str, Any]]] = {
    PAIRWISE: _pairwise,
    RANKING: _ranking,
    RATING: _rating,
    CORRECTION: _correction,
    SPAN: _span,
    CUSTOM: _custom,
}
FORMS = tuple(_CHECKS)


def completions_of_form(form: Form) -> tuple[int, int]:
    """Return how few and how many completions a task of this form has."""
    return {PAIRWISE: (2, 2), RANKING: (2, MAX_RANKED), RATING: (1, MAX_RANKED), CUSTOM: (1, MAX_RANKED)}.get(
        form.kind, (1, 1)
    )


def _require_sound(form: Form, where: str) -> None:
    """Raise `InputError` for a form that cannot be asked."""
    if form.kind not in FORMS:
        raise _wrong(where, form.kind, "there is no such kind of form", f"The kinds are {', '.join(FORMS)}")
    for name, low, high in (("strengths", 1, 3), ("points", 2, 10)):
        number = getattr(form, name)
        if isinstance(number, bool) or not isinstance(number, int) or not low <= number <= high:
            raise _wrong(where, f"{name} {number}", f"it must be a whole number from {low} to {high}", "Change it")
    if form.kind == RATING and not form.criteria:
        raise _wrong(where, "criteria", "a rating without criteria asks nothing", "Name one")
    if form.kind == SPAN and not form.labels:
        raise _wrong(where, "labels", "spans have no labels to choose from", 'Give some, such as ["false", "rude"]')
    if form.kind == CUSTOM and not form.fields:
        raise _wrong(where, "fields", "a custom form without fields asks nothing", "Give one")
    names = [field.name for field in form.fields]
    if twice := [name for name in names if names.count(name) > 1]:
        raise _wrong(where, f"field {twice[0]}", "two fields have this name", "Rename one")
    scales = {field.name for field in form.fields if field.type == SCALE}
    if unknown := [name for name, _ in form.reads_as if name not in scales]:
        raise _wrong(where, f"reads_as {unknown[0]}", "it names no scale field of the form", "Give weights of scales")


def _field(content: Any, where: str) -> Field:
    if isinstance(content, Field):
        return content
    if not isinstance(content, Mapping) or not isinstance(content.get("name"), str) or not content["name"].strip():
        raise _wrong(where, content, "a field has no name", 'Write {"name": "tone", "type": "choice", ...}')
    if unknown := [str(key) for key in content if key not in Field.__dataclass_fields__]:
        raise _wrong(where, f"field {content['name']}", f"it has the unknown key {unknown[0]}", "Remove it")
    field = Field(**{**content, "options": tuple(_names(content.get("options", ())))})
    place = f"field {field.name}"
    if field.type not in (CHOICE, SCALE, TEXT, CHECKBOX):
        raise _wrong(where, place, f"its type {field.type!r} does not exist", "Use choice, scale, text or checkbox")
    if field.type == CHOICE and len(field.options) < 2:
        raise _wrong(where, place, "a choice needs two options", "Give them")
    if field.type == SCALE and not (
        isinstance(field.low, int) and isinstance(field.high, int) and field.low < field.high
    ):
        raise _wrong(where, place, "a scale goes from low to a higher high, both whole numbers", "Change them")
    return field


def _names(content: Any) -> list[str]:
    if isinstance(content, str) or not all(isinstance(name, str) and name.strip() for name in content):
        raise ValueError(f"{content!r} is no list of names")
    return list(content)


def _require_keys(value: Mapping[str, Any], *allowed: str) -> None:
    if unknown := [str(key) for key in value if key not in allowed]:
        raise InvalidAnswer(f"{unknown[0]} is no key here; the keys are {', '.join(allowed)}")


def _whole(number: Any, low: int, high: int, name: str) -> int:
    if isinstance(number, bool) or not isinstance(number, int) or not low <= number <= high:
        raise InvalidAnswer(f"{name} is a whole number from {low} to {high}")
    return number


def _text(content: Any, name: str, *, required: bool) -> str:
    if not isinstance(content, str) or (required and not content.strip()):
        raise InvalidAnswer(f"{name} is a text{' that is not empty' if required else ''}")
    if len(content) > LONGEST_TEXT:
        raise InvalidAnswer(f"{name} has {len(content)} characters, and {LONGEST_TEXT} are allowed")
    return content


def _wrong(where: str, value: Any, reason: str, fix: str) -> InputError:
    return InputError(f"{where}={value} is invalid: {reason}. {fix}.")
