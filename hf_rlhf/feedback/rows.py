"""Tasks from the rows of a dataset: prompts with completions, preferences, and single completions."""

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from hf_rlhf.data.checks import messages_problem, prompt_problem
from hf_rlhf.data.dialogues import MalformedDialogue
from hf_rlhf.data.layouts import IMPLICIT_TEXT, LAYOUT_COLUMNS, find_layout, split_row
from hf_rlhf.errors import InputError
from hf_rlhf.feedback.forms import PAIRWISE, Form, InvalidAnswer, completions_of_form
from hf_rlhf.feedback.tasks import Task, canonical_json

_READ = ("prompt", "completions", "completion", "chosen", "rejected", "sources", "gold", "priority")


@dataclass(frozen=True)
class _Question:
    """A row as it is asked about, before the form says how many completions a task has."""

    prompt: Any
    completions: list[Any]
    sources: list[str]
    columns: dict[str, Any]
    gold: Any = None
    priority: float = 0.0


def tasks_from_rows(
    rows: Iterable[Mapping[str, Any]], form: Form, *, preferences_are_gold: bool = False, source: str = "rows"
) -> list[Task]:
    """Return the tasks that ask a form about rows.

    A row has `prompt` and `completions` (a list of texts or of lists of messages), or `prompt` and `completion`, or is
    a preference in one of TRL's layouts; optional columns are `sources` (a name for each completion), `gold` (the
    right answer) and `priority`. Other columns stay with the task. Where a row has more completions than the form asks
    about at once, each one, or for the pairwise form each two of them, is a task of its own.

    The two completions of a preference are put in the order of their hashes, which does not tell which one was chosen.

    Args:
        rows: as `hf_rlhf.data.files.read_rows(...).by_row()` or a `Dataset` gives them.
        form: what is asked.
        preferences_are_gold: whether the choice in a row of preferences is the right answer of a pairwise task.
        source: what errors name the rows by.

    Raises `InputError` with the number of a row (from 0) that is no task.
    """
    tasks: list[Task] = []
    for number, row in enumerate(rows):
        where = f"{source}: row {number} (from 0)"
        try:
            question = _question(row, preferences_are_gold)
            tasks += _tasks(question, form)
        except (MalformedDialogue, InvalidAnswer, ValueError, TypeError) as error:
            raise InputError(
                f"{where} is no task of the form {form.kind}: {error}. Mend it, or leave it out."
            ) from error
    return tasks


def _question(row: Mapping[str, Any], preferences_are_gold: bool) -> _Question:
    given = {name: value for name, value in row.items() if value is not None}
    rest = {name: plain(value) for name, value in given.items() if name not in _READ}
    priority = float(given.get("priority", 0.0))
    if not math.isfinite(priority):
        raise ValueError(f"its priority is {priority}")
    if isinstance(given.get("completions"), list):
        found = _Question(
            given.get("prompt"),
            given["completions"],
            _sources(given, len(given["completions"])),
            rest,
            given.get("gold"),
            priority,
        )
    elif {"chosen", "rejected"} <= set(given):
        found = _preference(given, rest, priority, preferences_are_gold)
    elif "completion" in given:
        found = _Question(given.get("prompt"), [given["completion"]], _sources(given, 1), rest, given.get("gold"), priority)  # fmt: skip
    else:
        columns = ", ".join(map(str, row)) or "none"
        raise ValueError(f"it needs prompt and completions, chosen and rejected, or completion; it has {columns}")
    _require_texts(found)
    return found


def _preference(
    given: Mapping[str, Any], rest: dict[str, Any], priority: float, preferences_are_gold: bool
) -> _Question:
    layout = find_layout({name: [given[name]] for name in LAYOUT_COLUMNS if name in given}).pairs
    if layout == IMPLICIT_TEXT:
        raise ValueError("chosen and rejected are whole texts, so the prompt cannot be told. Add a column prompt")
    pair = split_row(given, layout)
    answers = [_as_given(pair.chosen), _as_given(pair.rejected)]
    hashes = [hashlib.sha256(canonical_json([pair.prompt, each]).encode("utf-8")).digest() for each in answers]
    order = sorted(range(2), key=lambda number: hashes[number])
    sources = _sources(given, 2)
    gold = given.get("gold")
    if preferences_are_gold and gold is None:
        gold = {"preferred": order.index(0)}
    elif gold is not None:
        raise ValueError("gold names completions by their numbers, and a preference has none. Give completions")
    return _Question(
        _as_given(pair.prompt),
        [answers[number] for number in order],
        [sources[number] for number in order] if sources else [],
        rest,
        gold,
        priority,
    )


def _tasks(question: _Question, form: Form) -> Iterator[Task]:
    """Yield one task, or one for each part of the completions that a form asks about."""
    _, high = completions_of_form(form)
    numbers = range(len(question.completions))
    if len(numbers) <= high:
        parts: Iterable[Sequence[int]] = [numbers]
    elif form.kind == PAIRWISE or high == 1:
        parts = combinations(numbers, high)
        if question.gold is not None:
            raise ValueError(f"its gold is about {len(numbers)} completions, and the form asks about {high} at once")
    else:
        raise ValueError(f"it has {len(numbers)} completions, and the form takes {high} at most")
    for part in parts:
        yield Task(
            form,
            question.prompt,
            tuple(question.completions[number] for number in part),
            tuple(question.sources[number] for number in part) if question.sources else (),
            question.gold,
            question.priority,
            question.columns,
        )


def _sources(given: Mapping[str, Any], count: int) -> list[str]:
    sources = given.get("sources", [])
    if isinstance(sources, str) or not all(isinstance(name, str) for name in sources):
        raise ValueError("sources is a list with a name for each completion")
    if sources and len(sources) != count:
        raise ValueError(f"it has {len(sources)} sources for {count} completions")
    return list(sources)


def _require_texts(question: _Question) -> None:
    """Raise ValueError unless prompt and completions are texts or messages. An empty completion can be judged."""
    if problem := prompt_problem(question.prompt, conversational=isinstance(question.prompt, list)):
        raise ValueError(f"its prompt is {problem}")
    for completion in question.completions:
        if isinstance(completion, str):
            continue
        if problem := messages_problem(completion, may_end_empty=True):
            raise ValueError(f"a completion is {problem}")


def _as_given(value: Any) -> Any:
    return [dict(message) for message in value] if isinstance(value, list) else value


def plain(value: Any) -> Any:
    """Return a value as JSON can hold it: dates and the like as text, NaN as null."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, (str, int, bool, type(None))) else str(value)
