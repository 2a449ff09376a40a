"""Checks that a prompt is usable, shared by loaded sets and streams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from hf_rlhf.data.dialogues import MalformedDialogue, before_answer
from hf_rlhf.data.layouts import Layout
from hf_rlhf.data.preferences import (
    PREFERENCE_COLUMNS,
    list_problems,
    messages_problem,
    split_row,
    text_problem,
    value_problems,
)
from hf_rlhf.data.rows import require_columns
from hf_rlhf.errors import InputError

if TYPE_CHECKING:
    from hf_rlhf.types import Prompt

Overlong = Literal["error", "filter", "truncate_left"]

PROMPT_RULE = "A prompt is text, or a list of messages that does not end with the assistant's"
OVERLONG_CHOICES = (
    'overlong_prompts="filter" (leave them out) or overlong_prompts="truncate_left" (keep their last tokens)'
)


def require_prompts(layout: Layout, columns: Sequence[str], *, source: str) -> None:
    """Raise InputError for a set without prompts, and say so when there are only token ids."""
    if layout.prompts:
        return
    if ids := [name for name in ("input_ids", "prompt_ids") if name in columns and "prompt" not in columns]:
        raise InputError(
            f'{source}: no column "prompt"; the rows hold token ids ("{ids[0]}"). Give a column "prompt" with text or '
            "messages: rewards read it, and the policy's own tokenizer makes the ids"
        )
    require_columns(columns, ["prompt"], source=source, holds=layout.sentence)


def prompt_columns(layout: Layout, found: Sequence[str]) -> list[str]:
    """The columns that prompts are made of."""
    names = {"pairs": PREFERENCE_COLUMNS, "messages": ("prompt", "messages")}.get(layout.prompts, ("prompt",))
    return [name for name in names if name in found]


def prompt_problems(columns: Mapping[str, Sequence[Any]], layout: Layout) -> dict[str, list[str | None]]:
    """Return what is wrong with each value of the columns that prompts are made of; None where nothing is.

    Pairs that cannot be split are not among them: they are counted.
    """
    if layout.prompts == "pairs":
        return value_problems(columns, layout.pairs)
    if layout.prompts == "messages":
        rows = (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
        return {"messages": [_dialogue_problem(row) for row in rows]}
    conversational = layout.prompt == "messages"
    return {"prompt": [prompt_problem(value, conversational=conversational) for value in columns["prompt"]]}


def _dialogue_problem(row: Mapping[str, Any]) -> str | None:
    if problem := messages_problem(row["messages"], may_end_empty=True):
        return problem
    if "prompt" in row and (problem := text_problem(row["prompt"])):
        return f'the "prompt" beside it is {problem}'
    try:
        prompt_of(row, prompts="messages")
    except MalformedDialogue as error:
        return str(error)
    return None


def prompt_of(row: Mapping[str, Any], *, prompts: str, pairs: str = "") -> Prompt | None:
    """Return the prompt of a checked row, by what `Layout` says. Raises MalformedDialogue where it cannot be split."""
    if prompts == "pairs":
        return split_row(row, pairs).prompt
    return before_answer(row["messages"], row.get("prompt")) if prompts == "messages" else row["prompt"]


def check_prompts(prompts: Sequence[Any], *, source: str) -> None:
    """Raise InputError unless all prompts are text, or all are messages that leave the next turn to the assistant."""
    conversational = isinstance(next((prompt for prompt in prompts if prompt is not None), None), list)
    problems = {"prompt": [prompt_problem(prompt, conversational=conversational) for prompt in prompts]}
    require_no_problems(problems, len(prompts), source=source)


def require_no_problems(found: Mapping[str, Sequence[str | None]], rows: int, *, source: str) -> None:
    """Raise one InputError that lists what is wrong with the columns of so many rows, by row."""
    if problems := [line for name, each in found.items() for line in list_problems(name, each)]:
        raise InputError(
            f"{source}: prompts that cannot be used, in a set of {rows} rows (rows count from 0):\n  "
            + "\n  ".join(problems)
            + f"\n{PROMPT_RULE}. Mend these rows, or leave them out with dataset.filter(...)"
        )


def prompt_problem(value: Any, *, conversational: bool) -> str | None:
    """Return the problem with a prompt, None if it is valid. Messages must leave the next turn to the assistant."""
    if not conversational:
        return text_problem(value)
    problem = messages_problem(value)
    if problem is None and value[-1]["role"] == "assistant":
        return "a last message from the assistant (the policy writes that one)"
    return problem
