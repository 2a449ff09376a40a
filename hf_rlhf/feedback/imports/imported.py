"""Records of another tool as tasks and events, before a store takes them."""

import re
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hf_rlhf.errors import InputError
from hf_rlhf.feedback.forms import BOTH_BAD, TIE, Form
from hf_rlhf.feedback.rows import plain, tasks_from_rows
from hf_rlhf.feedback.store import ANSWER, PERSON, Event, FeedbackStore
from hf_rlhf.feedback.tasks import Task, canonical_json

FLAGGED, WITHOUT_FORM = "are flagged", "have no form there"
PROMPTS = ("prompt", "instruction", "question", "input", "context")
_COMPLETION = re.compile(
    r"(completion|response|answer|output|reply|generation|summary|candidate|text)s?[-_ ]?\w{0,2}", re.I
)
_PARTS = re.compile(r"[0-9]+|[A-Z]?[a-z]+|[A-Z]+")
_SIDES = ({"a", "left", "first", "1"}, {"b", "right", "second", "2"})
_TIES = {"tie", "equal", "same", "draw", "both", "bothgood", "equallygood"}
_BAD = {"bothbad", "bad", "neither", "none", "neitherisgood"}
_NAMESPACE = uuid.UUID("6f2f6c1e-6a0b-5d0c-9c55-0c1d6f2e7a10")


@dataclass(frozen=True)
class FieldNames:
    """Names of the fields that hold the prompt and the completions; by default they are told by common names."""

    prompt: str | None = None
    completions: tuple[str, ...] = ()

    def split(self, fields: Mapping[str, Any], where: str) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        """Return the prompt, the completions by name, and the other fields. Raises `InputError` where one lacks."""
        given = {name: value for name, value in fields.items() if value is not None}
        prompt = self.prompt or next((name for name in PROMPTS if name in given), None)
        if prompt is None or prompt not in given:
            raise InputError(
                f"{where} has no field {self.prompt or 'prompt'}; it has {', '.join(given) or 'none'}. Name the one"
                " with the prompt: prompt_field."
            )
        names = self.completions or tuple(n for n in given if n != prompt and _COMPLETION.fullmatch(n))
        if not names or (missing := [name for name in names if name not in given]):
            raise InputError(
                f"{where} has no field {missing[0] if names else 'with a completion'}; it has {', '.join(given)}. Name"
                " those with the completions: completion_fields."
            )
        others = {name: value for name, value in given.items() if name not in (prompt, *names)}
        return given[prompt], {name: given[name] for name in names}, others


BY_COMMON_NAMES = FieldNames()


@dataclass
class Imported:
    """Tasks and events of a file, and counts of what has no form here."""

    tasks: dict[str, Task] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    omitted: Counter[str] = field(default_factory=Counter)

    def task(self, form: Form, prompt: Any, completions: Iterable[Any], columns: Mapping[str, Any], where: str) -> Task:
        """Return the task of this content, added where it is new. Raises `InputError` for values that are no texts."""
        (task,) = tasks_from_rows([{"prompt": prompt, "completions": list(completions)}], form, source=where)
        return self.tasks.setdefault(task.id, replace(task, columns=plain(dict(columns))))

    def answer(self, task: Task, annotator: str, value: Any, where: str, *, kind: str = ANSWER, **details: Any) -> None:
        """Add an event. Its uuid is that of its content: the same file twice is the same events.

        Raises `InputError` for an answer that the form does not allow.
        """
        try:
            checked = task.check(value) if kind == ANSWER else None
        except ValueError as error:
            raise InputError(f"{where} is invalid: {error}. Mend it, or leave the record out.") from error
        made_of = canonical_json([task.id, annotator, kind, checked, details.get("created", "")])
        identity = str(uuid.uuid5(_NAMESPACE, made_of))
        details.setdefault("annotator_kind", PERSON)
        self.events.append(Event(identity, task.id, annotator, kind=kind, value=checked, **details))

    def add_to(self, store: FeedbackStore) -> tuple[int, int]:
        """Add all to a store, and return how many tasks and how many events were not there before.

        An answer that was imported before, and given again or taken back in the store since, stays as it is there.
        """
        added = store.add_tasks(self.tasks.values())
        return added, store.append_all(self.events)


def unnamed(place: int) -> str:
    """Return the name of an annotator whom a file does not name: by the place among those of a record."""
    return f"unnamed {place}"


def side_of(label: str, names: Sequence[str]) -> int | str | None:
    """Return 0, 1, tie or both_bad for the label of a preference between two named fields; None for another label.

    A label is first compared to the names and their last parts, so that `1` is `response_1` wherever it stands.
    """
    plain = _plain(label)
    ends = [(_PARTS.findall(name) or [""])[-1].lower() for name in names]
    for called in ([_plain(name) for name in names], ends):
        if called.count(plain) == 1:
            return called.index(plain)
    if plain.isdigit() and all(end.isdigit() for end in ends):
        return None
    for side, generic in enumerate(_SIDES):
        if plain in generic:
            return side
    return TIE if plain in _TIES else BOTH_BAD if plain in _BAD else None


def preference(side: int | str, strength: Any = None) -> dict[str, Any]:
    """Return the answer to the pairwise form."""
    if side in (TIE, BOTH_BAD):
        return {"preferred": side}
    return {"preferred": side, "strength": strength if strength is not None else 1}


def points_of(ratings: Iterable[Any], where: str) -> int:
    """Return the points of the scale that ratings of a file are on: 5, or up to 10 where there are higher ones.

    Raises `InputError` for ratings that are on no scale from 1.
    """
    given = list(ratings)
    wrong = [
        r for r in given if isinstance(r, bool) or not isinstance(r, (int, float)) or r != int(r) or not 1 <= r <= 10
    ]
    if wrong:
        raise InputError(
            f"{where} has the rating {wrong[0]!r}, and scales here go from 1 to at most 10. Shift the ratings, or leave"
            " the record out."
        )
    return 5 if max(given, default=0) <= 5 else 10


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
