"""The completions of a set whose rewards are asked for, with their prompts, whatever its layout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_rlhf.data.checks import messages_problem, value_problems
from hf_rlhf.data.dialogues import MalformedDialogue, before_answer
from hf_rlhf.data.layouts import PREFERENCE_COLUMNS, Layout, layout_of, split_row
from hf_rlhf.data.rows import LoadedRows
from hf_rlhf.errors import InputError

if TYPE_CHECKING:
    from hf_rlhf.types import Prompt

COMPLETIONS = "completions"  # several in each row


class ScoredText(NamedTuple):
    """One completion of a row. `role` is the column that holds it; a text prompt has a text completion."""

    row: int
    role: str
    prompt: Prompt
    completion: str


def find_texts(rows: LoadedRows) -> tuple[LoadedRows, list[ScoredText]]:
    """Return the rows that can be used, with all of their columns read, and the completions of each in order.

    Rows have `completions` (a list) beside `prompt`, `chosen` and `rejected`, `prompt` and `completion`, `messages`
    whose last one is the completion, or `text`. Each completion is text or one message of the assistant.

    Raises InputError for a set without completions, and for more bad rows than may be skipped.
    """
    layout = layout_of(rows.dataset, source=rows.source)
    several = {"prompt", COMPLETIONS} <= set(rows.dataset.column_names)
    names = _columns(rows, layout, several=several)
    rows = rows.read(rows.dataset.column_names)
    if layout.pairs and not several:
        rows = rows.without(value_problems({name: rows.columns[name] for name in names}, layout.pairs))
    found: list[list[ScoredText]] = []
    problems: list[str | None] = []
    for number, row in enumerate(rows.by_row()):
        try:
            found.append(_texts_of(number, row, layout, several=several))
            problems.append(None)
        except (MalformedDialogue, TypeError, KeyError, AttributeError) as error:
            found.append([])
            problems.append(str(error) if isinstance(error, MalformedDialogue) else "neither text nor messages")
    good = rows.good({names[-1]: problems})
    texts = [text._replace(row=number) for number, row in enumerate(good) for text in found[row]]
    return (rows if len(good) == len(problems) else rows.select(good)), texts


def _columns(rows: LoadedRows, layout: Layout, *, several: bool) -> Sequence[str]:
    """Return the columns that prompts and completions are made of, the completion's last."""
    if several:
        return ["prompt", COMPLETIONS]
    if layout.pairs:
        return [name for name in PREFERENCE_COLUMNS if name in rows.dataset.column_names and name != "margin"]
    if layout.texts:
        return list(layout.texts)
    raise InputError(
        f"{rows.source}: no completions to score; columns found: {', '.join(rows.dataset.column_names)}. Give prompt"
        " with completion, completions, or chosen and rejected; messages; or text"
    )


def _texts_of(number: int, row: Mapping[str, Any], layout: Layout, *, several: bool) -> list[ScoredText]:
    if several:
        if not isinstance(row[COMPLETIONS], list) or not row[COMPLETIONS]:
            raise MalformedDialogue("no list of completions")
        return [_scored(number, COMPLETIONS, row["prompt"], each) for each in row[COMPLETIONS]]
    if layout.pairs:
        pair = split_row(row, layout.pairs)
        prompt = "" if pair.prompt is None else pair.prompt
        return [_scored(number, role, prompt, getattr(pair, role)) for role in ("chosen", "rejected")]
    if layout.texts == ("messages",):
        if problem := messages_problem(row["messages"], may_end_empty=True):
            raise MalformedDialogue(problem)
        prompt = before_answer(row["messages"])
        answer = row["messages"][len(prompt) :]
        if not answer:
            raise MalformedDialogue("does not end in an assistant turn")
        return [_scored(number, "messages", prompt, answer)]
    if layout.texts == ("text",):
        return [_scored(number, "text", "", row["text"])]
    return [_scored(number, "completion", row["prompt"], row["completion"])]


def _scored(number: int, role: str, prompt: Any, completion: Any) -> ScoredText:
    """Return the completion as one text. Raises MalformedDialogue for what is no text and no message."""
    if not isinstance(prompt, str) and (problem := messages_problem(prompt)):
        raise MalformedDialogue(f"the prompt is {problem}")
    if isinstance(completion, Mapping):
        completion = [completion]
    if isinstance(completion, list):
        if isinstance(prompt, str):
            raise MalformedDialogue("a completion of messages for a prompt that is text")
        if len(completion) != 1 or completion[0].get("role") != "assistant" or completion[0].get("tool_calls"):
            raise MalformedDialogue("an answer that is not one message of the assistant's text")
        completion = completion[0].get("content")
    if not isinstance(completion, str):
        raise MalformedDialogue(f"{type(completion).__name__} instead of text")
    return ScoredText(number, role, prompt, completion)
