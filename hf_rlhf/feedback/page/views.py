"""Tasks as an annotator sees them: completions by their place on the screen, without sources and gold answers."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from hf_rlhf.feedback.forms import CORRECTION, PAIRWISE, RANKING, RATING, SPAN
from hf_rlhf.feedback.tasks import Task, as_shown


def shown_task(task: Task, order: Sequence[int]) -> dict[str, Any]:
    """Return what the page gets of a task. It holds nothing that tells who wrote a completion.

    Args:
        task: to be shown.
        order: the numbers of the completions, first shown first.
    """
    whole = task.form.kind in (CORRECTION, SPAN)  # these count the characters of one text
    return {
        "id": task.id,
        "form": _shown_form(task),
        "prompt": _turns(task.prompt),
        "completions": [
            [{"role": None, "content": task.texts[number]}] if whole else _turns(task.completions[number])
            for number in order
        ],
    }


def by_number(task: Task, value: Any, order: Sequence[int]) -> Any:
    """Return an answer that names completions by their places as one that names them by their numbers.

    What has another shape than an answer is returned as it is, for the form's own check to refuse.
    """
    return _moved(task, value, [list(order).index(number) for number in range(len(order))], order)


def by_place(task: Task, value: Any, order: Sequence[int]) -> Any:
    """Return the reverse of `by_number`."""
    return _moved(task, value, order, [list(order).index(number) for number in range(len(order))])


def _moved(task: Task, value: Any, take: Sequence[int], names: Sequence[int]) -> Any:
    """Return an answer whose lists are taken in the order `take`, and whose place `p` is called `names[p]`."""
    if not isinstance(value, Mapping):
        return value
    if task.form.kind == PAIRWISE:
        preferred = value.get("preferred")
        if isinstance(preferred, int) and not isinstance(preferred, bool) and preferred in (0, 1):
            return {**value, "preferred": names[preferred]}
    elif task.form.kind == RANKING and _fits(value.get("ranks"), take):
        return {**value, "ranks": as_shown(value["ranks"], take)}
    elif task.form.kind == RATING and isinstance(ratings := value.get("ratings"), Mapping):
        moved = {name: as_shown(each, take) if _fits(each, take) else each for name, each in ratings.items()}
        return {**value, "ratings": moved}
    return value


def _fits(items: Any, order: Sequence[int]) -> bool:
    return isinstance(items, list) and len(items) == len(order)


def _shown_form(task: Task) -> dict[str, Any]:
    form = task.form
    return {
        "kind": form.kind,
        "question": form.question,
        "strengths": form.strengths,
        "criteria": list(form.criteria),
        "points": form.points,
        "labels": list(form.labels),
        "fields": [
            {
                "name": field.name,
                "type": field.type,
                "label": field.label or field.name,
                "options": list(field.options),
                "low": field.low,
                "high": field.high,
                "required": field.required,
            }
            for field in form.fields
        ],
    }


def _turns(content: Any) -> list[dict[str, Any]]:
    """Return messages; a text is one without a role."""
    if content is None or isinstance(content, str):
        return [{"role": None, "content": content or ""}]
    return [{"role": str(message.get("role", "")), "content": _text(message)} for message in content]


def _text(message: Mapping[str, Any]) -> str:
    """Return the text of a message, and the calls of tools that it makes as JSON."""
    content = message.get("content")
    parts = [] if content is None else [content if isinstance(content, str) else _json(content)]
    if calls := message.get("tool_calls"):
        parts.append(_json(calls))
    return "\n\n".join(parts)


def _json(content: Any) -> str:
    return json.dumps(content, ensure_ascii=False, indent=2)
