"""Prompts: checked as a whole, tokenised once, never longer than the run allows."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

from hf_rlhf.data.files import list_rows, read_columns, require_columns, require_dataset
from hf_rlhf.data.preferences import (
    fingerprint,
    list_problems,
    messages_problem,
    prepare_preferences,
    text_problem,
)
from hf_rlhf.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

Overlong = Literal["error", "filter", "truncate_left"]


def prepare_prompts(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_prompt_length: int,
    source: str,
    overlong_prompts: Overlong = "error",
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> Dataset:
    """The set with `prompt` as given (text or messages), `prompt_ids` (list of int) and every other column unchanged.

    A preference set without a `prompt` column gives each of its prompts once. Messages go through the tokenizer's chat
    template with a generation prompt; text is tokenised as it is. `overlong_prompts` says what becomes of prompts above
    `max_prompt_length` tokens: "truncate_left" keeps the last tokens of `prompt_ids` and leaves `prompt` whole.

    Raises InputError for an empty set, a missing column, bad values (row numbers count from 0), messages without a
    chat template, and prompts that are too long.
    """
    if overlong_prompts not in get_args(Overlong):
        raise InputError(f"overlong_prompts={overlong_prompts!r}; choose one of {', '.join(get_args(Overlong))}")
    if max_prompt_length < 1:
        raise InputError(f"max_prompt_length={max_prompt_length} leaves no room for a prompt; use at least 1")
    dataset = _with_prompts(require_dataset(dataset, source=source), source=source)
    prompts = read_columns(dataset, ["prompt"])["prompt"]
    check_prompts(prompts, source=source)

    if isinstance(prompts[0], str):
        prompt_ids = _tokenize_texts(prompts, tokenizer)
    else:
        prompt_ids = _tokenize_messages(prompts, tokenizer, chat_template_kwargs or {}, source=source)
    if problems := list_problems("prompt", (None if ids else "no tokens" for ids in prompt_ids)):
        raise InputError(f"{source}: {problems[0]} (rows count from 0). Every prompt needs at least one token")

    kept = _fitting_rows(prompt_ids, max_prompt_length, overlong_prompts, source=source)
    if "prompt_ids" in dataset.column_names:
        dataset = dataset.remove_columns("prompt_ids")
    dataset = dataset.select(kept) if len(kept) < len(dataset) else dataset
    return dataset.add_column("prompt_ids", [prompt_ids[row][-max_prompt_length:] for row in kept])  # pyright: ignore[reportCallIssue]


def require_rows(dataset: Dataset, minimum: int, *, source: str, why: str) -> None:
    """Raise InputError when the set has fewer rows than one batch; `why` is the batch algebra behind `minimum`."""
    if len(dataset) < minimum:
        raise InputError(
            f"{source}: {len(dataset)} rows are fewer than the {minimum} that one batch takes ({why}). "
            f"Add {minimum - len(dataset)} rows or make the batch smaller"
        )


def check_prompts(prompts: Sequence[Any], *, source: str) -> None:
    """Raise InputError unless all prompts are text, or all are messages that leave the next turn to the assistant."""
    conversational = isinstance(next((prompt for prompt in prompts if prompt is not None), None), list)
    problem_of = prompt_messages_problem if conversational else text_problem
    if problems := list_problems("prompt", map(problem_of, prompts)):
        raise InputError(
            f"{source}: prompts that cannot be used, in a set of {len(prompts)} rows (rows count from 0):\n  "
            + "\n  ".join(problems)
            + "\nA prompt is text, or a list of messages that does not end with the assistant's. "
            "Mend these rows, or leave them out with dataset.filter(...)"
        )


def prompt_messages_problem(value: Any) -> str | None:
    problem = messages_problem(value)
    if problem is None and value[-1]["role"] == "assistant":
        return "a last message from the assistant (the policy writes that one)"
    return problem


def _with_prompts(dataset: Dataset, *, source: str) -> Dataset:
    """The set itself when it has prompts; else the distinct prompts of its preference pairs."""
    if "prompt" in dataset.column_names or not {"chosen", "rejected"} <= set(dataset.column_names):
        require_columns(dataset, ["prompt"], source=source)
        return dataset
    pairs, report = prepare_preferences(dataset, source=source)
    if "prompt" not in pairs.column_names:
        raise InputError(
            f'{source}: no column "prompt", and the pairs are plain text [{report.layout}], so their prompts cannot be '
            "told from their answers. Add a prompt column, or write the pairs as lists of messages"
        )
    first_rows = {fingerprint(prompt): row for row, prompt in reversed(list(enumerate(pairs["prompt"])))}
    answers = [name for name in ("chosen", "rejected", "margin") if name in pairs.column_names]
    logger.info("%s; %d distinct prompts", report, len(first_rows))
    return pairs.select(sorted(first_rows.values())).remove_columns(answers)


def _tokenize_texts(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    return tokenizer(list(texts), verbose=False)["input_ids"]  # pyright: ignore[reportReturnType]


def _tokenize_messages(
    prompts: Sequence[Sequence[Mapping[str, Any]]],
    tokenizer: PreTrainedTokenizerBase,
    chat_template_kwargs: Mapping[str, Any],
    *,
    source: str,
) -> list[list[int]]:
    if not tokenizer.chat_template:
        raise InputError(
            f"{source}: the prompts are lists of messages, and the tokenizer {tokenizer.name_or_path or ''} has no chat "
            "template. Pass plain-text prompts, set --chat_template_path, or use an instruct model"
        )
    prompt_ids = []
    for row, prompt in enumerate(prompts):
        # datasets fills keys that only other messages have with None, and templates take those for given
        # (transformers removes them itself since some version after 5.8)
        messages = [{key: value for key, value in message.items() if value is not None} for message in prompt]
        try:
            encoded = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=True, **chat_template_kwargs
            )
        except Exception as error:  # templates raise what they like: jinja2's errors, TypeError, ...
            raise InputError(
                f"{source}: the chat template refuses row {row} (rows count from 0): {error}. Mend the row's messages, "
                "or set --chat_template_path"
            ) from error
        prompt_ids.append(encoded["input_ids"])  # pyright: ignore
    return prompt_ids


def _fitting_rows(
    prompt_ids: Sequence[Sequence[int]], limit: int, overlong_prompts: Overlong, *, source: str
) -> list[int]:
    """Rows to keep. Raises InputError for prompts above the limit ("error") or when none is left ("filter")."""
    too_long = [row for row, ids in enumerate(prompt_ids) if len(ids) > limit]
    if not too_long:
        return list(range(len(prompt_ids)))
    longest = max(map(len, prompt_ids))
    message = (
        f"{source}: prompts longer than max_prompt_length={limit} tokens: {list_rows(too_long)} of {len(prompt_ids)}, "
        f"counted from 0; the longest has {longest}"
    )
    if overlong_prompts == "error":
        options = (
            'overlong_prompts="filter" (leave them out) or overlong_prompts="truncate_left" (keep their last tokens)'
        )
        raise InputError(f"{message}. Raise max_prompt_length to {longest}, or set {options}")
    if overlong_prompts == "filter" and len(too_long) == len(prompt_ids):
        raise InputError(f'{message}. overlong_prompts="filter" leaves no prompt; raise max_prompt_length')
    logger.warning("%s; %s", message, "left out" if overlong_prompts == "filter" else "cut on the left")
    skipped = set(too_long) if overlong_prompts == "filter" else set()
    return [row for row in range(len(prompt_ids)) if row not in skipped]
