"""Prompts to sample completions for: conversations that wait for a reply, from rows of any layout."""

from collections.abc import Sequence
from typing import Any

from hf_rlhf.data.checks import PROMPT_RULE, prompt_problems, require_prompts
from hf_rlhf.data.dialogues import MalformedDialogue
from hf_rlhf.data.layouts import layout_of, prompt_columns, prompt_of
from hf_rlhf.data.rows import LoadedRows, fingerprint
from hf_rlhf.errors import InputError
from hf_rlhf.types import Message


def feedback_prompts(rows: LoadedRows, system_prompt: str | None = None) -> list[list[Message]]:
    """Return the distinct prompts of some rows, as `feedback_rows` has them."""
    return [row["prompt"] for row in feedback_rows(rows, system_prompt)]


def feedback_rows(
    rows: LoadedRows, system_prompt: str | None = None, columns: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Return the distinct prompts of some rows, in order: `prompt`, or the messages before an answer.

    Text becomes the message of a user, and `system_prompt` stands before a conversation without a system message. Pairs
    that cannot be split are skipped. Those of `columns` that the rows have come along, from the first row of a prompt.

    Raises `InputError` for rows without prompts, bad values (unless `rows` may skip them), and when no prompt is left.
    """
    found, source = rows.dataset.column_names, rows.source
    layout = layout_of(rows.dataset, source=source)
    require_prompts(layout, found, source=source)
    names = prompt_columns(layout, found)
    besides = [name for name in columns if name in found and name not in names]
    good = rows.read([*names, *besides])
    good = good.without(prompt_problems({name: good.columns[name] for name in names}, layout), f"{PROMPT_RULE}. ")
    prompts: dict[bytes, dict[str, Any]] = {}
    for row in good.by_row():
        try:
            prompt = prompt_of(row, prompts=layout.prompts, pairs=layout.pairs)
        except MalformedDialogue:
            continue
        if prompt is not None:
            made = {"prompt": _as_conversation(prompt, system_prompt), **{name: row[name] for name in besides}}
            prompts.setdefault(fingerprint(prompt), made)
    if not prompts:
        raise InputError(
            f"{source}: no prompt is left. Give rows with a column prompt, or dialogues that end in an answer."
        )
    return list(prompts.values())


def _as_conversation(prompt, system_prompt: str | None) -> list[Message]:
    messages: list[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    if system_prompt and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system_prompt})
    return messages
