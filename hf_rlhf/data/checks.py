"""Checks of the values of a row: text, messages, prompts, pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from hf_rlhf.data.dialogues import MalformedDialogue, is_empty
from hf_rlhf.data.layouts import CONVERSATIONAL, IMPLICIT_CONVERSATIONAL, Layout, prompt_of
from hf_rlhf.data.rows import require_columns
from hf_rlhf.errors import InputError

Overlong = Literal["error", "filter", "truncate_left"]

PROMPT_RULE = "A prompt is text, or a list of messages that does not end with the assistant's"
OVERLONG_CHOICES = (
    'overlong_prompts="filter" (leave them out) or overlong_prompts="truncate_left" (keep their last tokens)'
)


def text_problem(value: Any) -> str | None:
    """Return the problem with a text, None if it is valid."""
    if value is None:
        return "None"
    if not isinstance(value, str):
        return f"{type(value).__name__} instead of text"
    return None if value.strip() else "empty text"


def messages_problem(value: Any, *, may_end_empty: bool = False) -> str | None:
    """Return the problem with a list of messages, None if it is valid."""
    if value is None:
        return "None"
    if not isinstance(value, list):
        return f"{type(value).__name__} instead of a list of messages"
    if not value:
        return "no messages"
    for message in value:
        if not (isinstance(message, Mapping) and isinstance(message.get("role"), str)):
            return 'a message without "role" and "content"'
        content = message.get("content")
        if not (isinstance(content, str) or (content is None and message.get("tool_calls"))):
            return 'a message whose "content" is not text'
    return "empty last message" if is_empty(value[-1]) and not may_end_empty else None


def margin_problem(value: Any) -> str | None:
    """Return the problem with a margin, None if it is valid."""
    if value is None:
        return "None"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return f"{type(value).__name__} instead of a number"
    return None if math.isfinite(value) else str(value)


# --- pairs -------------------------------------------------------------------------------------------------------


def value_problems(columns: Mapping[str, Sequence[Any]], layout: str) -> dict[str, list[str | None]]:
    """Return the problem with each value of each column, None for a valid one."""
    return {name: [_value_problem(value, name, layout) for value in values] for name, values in columns.items()}


def _value_problem(value: Any, column: str, layout: str) -> str | None:
    if column == "margin":
        return margin_problem(value)
    if layout == CONVERSATIONAL or (layout == IMPLICIT_CONVERSATIONAL and column != "prompt"):
        return messages_problem(value, may_end_empty=layout == IMPLICIT_CONVERSATIONAL)
    return text_problem(value)


# --- prompts -----------------------------------------------------------------------------------------------------


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


def prompt_problem(value: Any, *, conversational: bool) -> str | None:
    """Return the problem with a prompt, None if it is valid. Messages must leave the next turn to the assistant."""
    if not conversational:
        return text_problem(value)
    problem = messages_problem(value)
    if problem is None and value[-1]["role"] == "assistant":
        return "a last message from the assistant (the policy writes that one)"
    return problem
