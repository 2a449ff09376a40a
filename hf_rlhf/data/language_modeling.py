"""Texts for the language-model loss that PPO-ptx adds to the policy's (Ouyang et al. 2022, arXiv 2203.02155, 3.5)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_rlhf.data.json_columns import keep_own_keys
from hf_rlhf.data.layouts import layout_of
from hf_rlhf.data.preferences import list_problems, messages_problem, text_problem
from hf_rlhf.data.prompt_checks import prompt_problem
from hf_rlhf.data.rows import read_columns, require_dataset
from hf_rlhf.data.tokens import (
    RefusedByTemplate,
    chat_text,
    options_by_row,
    require_chat_template,
    token_ids,
    with_row_options,
)
from hf_rlhf.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


class TokenizedText(NamedTuple):
    """One row: the first `given` of its ids only condition, those after them count."""

    ids: list[int]
    given: int


def prepare_texts(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_ptx_length: int,
    source: str,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> Dataset:
    """The set as `prompt_ids`, which only condition, and `completion_ids`, whose tokens count; no other columns.

    Rows have `text` or `messages`, where every token after the first counts, or `prompt` and `completion` (both text or
    both messages), where the completion counts. Messages go through the chat template, with the row's `tools` and
    `chat_template_kwargs` where there are such columns, and the run's where the row does not say otherwise.
    Plain text ends with the tokenizer's end token, which is added where it is missing, as trl's SFTTrainer does. Tokens
    after the first `max_ptx_length` of a row are cut off.

    Raises InputError for an empty set, missing columns, bad values (row numbers count from 0), messages without a chat
    template, a template that renders a prompt otherwise once a completion follows, and rows with nothing to learn.
    """
    if max_ptx_length < 2:
        raise InputError(
            f"max_ptx_length={max_ptx_length} leaves nothing to learn: a text needs 2 tokens, use at least 2"
        )
    dataset = keep_own_keys(require_dataset(dataset, source=source))
    names = find_columns(dataset, source=source)
    columns = read_columns(dataset, with_row_options(names, dataset.column_names), source=source)
    settings: dict[str, Any] = {"source": source, "chat_template_kwargs": chat_template_kwargs}
    _require_none(text_problems({name: columns[name] for name in names}), source=source)
    _require_none(template_problems(columns, tokenizer, **settings), source=source)
    texts = tokenize_texts(columns, tokenizer, **settings)
    _require_none({names[-1]: learning_problems(texts, max_ptx_length)}, source=source)
    if too_long := [len(text.ids) for text in texts if len(text.ids) > max_ptx_length]:
        logger.warning(
            "%s: %d of %d texts have more than max_ptx_length=%d tokens (the longest %d) and are cut on the right",
            source,
            len(too_long),
            len(texts),
            max_ptx_length,
            max(too_long),
        )
    return _to_dataset(texts, max_ptx_length)


def find_columns(dataset: Dataset, *, source: str) -> tuple[str, ...]:
    """The columns with the texts of a set. Raises InputError, with the layout that it has, when there are none."""
    layout = layout_of(dataset, source=source)
    if not layout.texts:
        raise InputError(
            f"{source}: columns {', '.join(dataset.column_names) or 'none'}; texts need messages, or prompt and"
            f" completion, or text.{layout.sentence} Use dataset.rename_column(...)"
        )
    return layout.texts


def is_conversational(columns: Mapping[str, Sequence[Any]]) -> bool:
    """Return whether texts are messages: there is a column of that name, or prompts are lists."""
    first_prompt = next((prompt for prompt in columns.get("prompt", ()) if prompt is not None), None)
    return "messages" in columns or isinstance(first_prompt, list)


def text_problems(columns: Mapping[str, Sequence[Any]]) -> dict[str, list[str | None]]:
    """Return the problem with each value of each column, None for a valid one."""
    conversational = is_conversational(columns)
    other = messages_problem if conversational else text_problem
    return {
        name: [prompt_problem(v, conversational=conversational) if name == "prompt" else other(v) for v in values]
        for name, values in columns.items()
    }


def template_problems(
    columns: Mapping[str, Sequence[Any]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    source: str,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> dict[str, list[str | None]]:
    """Return the chat template's objection to each row of checked values, None for a row without one."""
    if not is_conversational(columns):
        return {}
    require_chat_template(tokenizer, source=source)
    rows = (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
    last = "messages" if "messages" in columns else "completion"
    return {last: [_template_problem(row, tokenizer, chat_template_kwargs) for row in rows]}


def _template_problem(
    row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, chat_template_kwargs: Mapping[str, Any] | None
) -> str | None:
    settings: dict[str, Any] = {"options": row, "chat_template_kwargs": chat_template_kwargs}
    try:
        if "messages" in row:
            chat_text(row["messages"], tokenizer, continued=False, **settings)
            return None
        prompt = chat_text(row["prompt"], tokenizer, continued=True, **settings)
        whole = chat_text(row["prompt"] + row["completion"], tokenizer, continued=False, **settings)
    except RefusedByTemplate as refusal:
        return str(refusal)
    return None if whole.startswith(prompt.rstrip()) else _REWRITES


_REWRITES = (
    "the chat template renders the prompt otherwise once the completion follows, so the completion has no clear"
    " beginning (set --chat_template_path to a template that keeps what it wrote, or give the rows as messages or as"
    " text)"
)


def learning_problems(texts: Sequence[TokenizedText], max_ptx_length: int) -> list[str | None]:
    """Return why each text gives nothing to learn within `max_ptx_length` tokens, None if it gives something."""
    longest = max((text.given for text in texts), default=0)
    full = f"the prompt alone fills max_ptx_length={max_ptx_length} tokens (raise it above {longest})"
    none = "no token to learn after the first or the prompt"
    return [none if len(ids) <= given else full if given >= max_ptx_length else None for ids, given in texts]


def _require_none(found: Mapping[str, Sequence[str | None]], *, source: str) -> None:
    """Raise one InputError that lists every column's problems with their rows."""
    if problems := [line for name, each in found.items() for line in list_problems(name, each)]:
        raise InputError(
            f"{source}: texts that cannot be used (rows count from 0):\n  "
            + "\n  ".join(problems)
            + "\nMend these rows, or leave them out with dataset.filter(...)"
        )


def tokenize_texts(
    columns: Mapping[str, Sequence[Any]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    source: str,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> list[TokenizedText]:
    """The checked rows, with the `ROW_OPTIONS` that they have, as ids that are not cut to any length."""
    settings: dict[str, Any] = {"chat_template_kwargs": chat_template_kwargs, "source": source}
    settings["options"] = options_by_row(columns)
    for name in ("messages", "text"):
        if name in columns:
            ids = token_ids(columns[name], tokenizer, continued=False, **settings)
            return [TokenizedText(each, given=1) for each in ids]
    prompts = token_ids(columns["prompt"], tokenizer, continued=True, **settings)
    joined = [prompt + completion for prompt, completion in zip(columns["prompt"], columns["completion"], strict=True)]
    whole = token_ids(joined, tokenizer, continued=False, **settings)
    return [TokenizedText(ids, _given(prompt, ids)) for prompt, ids in zip(prompts, whole, strict=True)]


def _given(prompt: Sequence[int], ids: Sequence[int]) -> int:
    """A token that merges the prompt's end with the completion's beginning counts, as in trl."""
    return max(common_prefix_length(prompt, ids), 1)


def common_prefix_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the number of leading ids that two sequences share."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))


def _to_dataset(texts: Sequence[TokenizedText], max_ptx_length: int) -> Dataset:
    from datasets import Dataset

    return Dataset.from_dict(
        {
            "prompt_ids": [ids[:given] for ids, given in texts],
            "completion_ids": [ids[given:max_ptx_length] for ids, given in texts],
        }
    )
