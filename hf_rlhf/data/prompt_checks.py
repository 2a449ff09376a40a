"""What a usable prompt is: the checks that loaded sets and streams share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from hf_rlhf.data.files import require_columns
from hf_rlhf.data.preferences import list_problems, messages_problem, text_problem
from hf_rlhf.errors import InputError

Overlong = Literal["error", "filter", "truncate_left"]

PROMPT_RULE = "A prompt is text, or a list of messages that does not end with the assistant's"
OVERLONG_CHOICES = (
    'overlong_prompts="filter" (leave them out) or overlong_prompts="truncate_left" (keep their last tokens)'
)


def require_prompt_column(columns: Sequence[str], *, source: str) -> None:
    """Raise InputError without a column `prompt`, and say so when there are only token ids."""
    if ids := [name for name in ("input_ids", "prompt_ids") if name in columns and "prompt" not in columns]:
        raise InputError(
            f'{source}: no column "prompt"; the rows hold token ids ("{ids[0]}"). Give a column "prompt" with text or '
            "messages: rewards read it, and the policy's own tokenizer makes the ids"
        )
    require_columns(columns, ["prompt"], source=source)


def check_prompts(prompts: Sequence[Any], *, source: str) -> None:
    """Raise InputError unless all prompts are text, or all are messages that leave the next turn to the assistant."""
    conversational = isinstance(next((prompt for prompt in prompts if prompt is not None), None), list)
    if problems := list_problems("prompt", (prompt_problem(p, conversational=conversational) for p in prompts)):
        raise InputError(
            f"{source}: prompts that cannot be used, in a set of {len(prompts)} rows (rows count from 0):\n  "
            + "\n  ".join(problems)
            + f"\n{PROMPT_RULE}. Mend these rows, or leave them out with dataset.filter(...)"
        )


def prompt_problem(value: Any, *, conversational: bool) -> str | None:
    """What is wrong with a prompt; None when nothing is. Messages must leave the next turn to the assistant."""
    if not conversational:
        return text_problem(value)
    problem = messages_problem(value)
    if problem is None and value[-1]["role"] == "assistant":
        return "a last message from the assistant (the policy writes that one)"
    return problem
