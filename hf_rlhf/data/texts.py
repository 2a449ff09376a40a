"""Texts: demonstrations for fine-tuning, and those for the language-model loss of PPO-ptx.

PPO-ptx adds that loss to the policy's (Ouyang et al. 2022, arXiv 2203.02155, 3.5).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_rlhf.data.checks import messages_problem, prompt_problem, text_problem
from hf_rlhf.data.layouts import layout_of
from hf_rlhf.data.prepared import PreparedSet, TokenizerState
from hf_rlhf.data.report import BEGUN, Lengths, Limit, SetReport, begun, measured_rows, report_set, select_for_trl
from hf_rlhf.data.rows import LoadedRows, fingerprints
from hf_rlhf.data.shapes import labeled_true
from hf_rlhf.data.tokens import (
    ROW_OPTIONS,
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
    """Return a set of `prompt_ids`, which only condition, and `completion_ids`, whose tokens count.

    Rows have `text` or `messages`, where every token after the first counts, or `prompt` and `completion` (both text or
    both messages), where the completion counts. Messages go through the chat template, with the row's `tools` and
    `chat_template_kwargs` where there are such columns, and the run's where the row does not say otherwise.
    Of rows with binary labels, those labeled true are used.
    Plain text ends with the tokenizer's end token, which is added where it is missing, as trl's SFTTrainer does. Tokens
    after the first `max_ptx_length` of a row are cut off.

    Raises InputError for an empty set, missing columns, bad values (row numbers count from 0), messages without a chat
    template, a template that renders a prompt otherwise once a completion follows, and rows with nothing to learn.
    """
    rows = LoadedRows.given(dataset, source=source)
    settings: dict[str, Any] = {"max_ptx_length": max_ptx_length, "chat_template_kwargs": chat_template_kwargs}
    return prepare_ptx_set(rows, tokenizer, role=source, **settings).dataset


def text_settings(tokenizer: PreTrainedTokenizerBase, max_ptx_length: int, chat_template_kwargs: Any) -> dict[str, Any]:
    """Return what the ids of PPO-ptx depend on besides the rows, by the names that `PPOTrainer` has for it."""
    return {
        "processing_class": TokenizerState.of(tokenizer),
        "max_ptx_length": max_ptx_length,
        "chat_template_kwargs": dict(chat_template_kwargs or {}),
    }


def prepare_ptx_set(
    rows: LoadedRows,
    tokenizer: PreTrainedTokenizerBase,
    *,
    role: str,
    max_ptx_length: int,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> PreparedSet:
    """Check, tokenize and report on the texts of PPO-ptx; for columns and errors see `prepare_texts`.

    Rows without a token to learn within the limit are bad rows.
    """
    if max_ptx_length < 2:
        raise InputError(
            f"max_ptx_length={max_ptx_length} leaves nothing to learn: a text needs 2 tokens, use at least 2"
        )
    read, limit = rows.rows_read, Limit("max_ptx_length", max_ptx_length, "are cut on the right")
    settings: dict[str, Any] = {"source": rows.source, "chat_template_kwargs": chat_template_kwargs}
    good, names, left_out = _checked(rows, tokenizer, **settings)
    texts = tokenize_texts(good.columns, tokenizer, **settings)
    kept = good.good({names[-1]: learning_problems(texts, max_ptx_length)})
    if len(kept) < len(texts):
        good, texts = good.select(kept), [texts[row] for row in kept]
    lengths = [len(text.ids) for text in texts]
    if too_long := [length for length in lengths if length > max_ptx_length]:
        logger.warning(
            "%s: %d of %d texts have more than max_ptx_length=%d tokens (the longest %d) and are cut on the right",
            rows.source,
            len(too_long),
            len(texts),
            max_ptx_length,
            max(too_long),
        )
    measured = [texts[row] for row in measured_rows(len(texts))]
    report = _report(rows, good, names, read, measured, tokenizer, role, limit, left_out)
    made_with = text_settings(tokenizer, max_ptx_length, chat_template_kwargs)
    return PreparedSet(_to_dataset(texts, max_ptx_length), report, good.place, made_with)


def prepare_text_set(rows: LoadedRows, tokenizer: PreTrainedTokenizerBase, *, role: str, limit: Limit) -> PreparedSet:
    """Check and report on demonstrations, for trl's `SFTTrainer`. Raises InputError for columns and values."""
    read = rows.rows_read
    good, names, left_out = _checked(rows, tokenizer, source=rows.source)
    measured = good.select(measured_rows(len(good.dataset)))
    texts = tokenize_texts(measured.columns, tokenizer, source=rows.source)
    report = _report(rows, good, names, read, texts, tokenizer, role, limit, left_out)
    different = frozenset(fingerprints(good.columns, [*names, *ROW_OPTIONS]))
    return PreparedSet(select_for_trl(good.dataset, names), report, good.place, fingerprints=different)


def _checked(
    rows: LoadedRows,
    tokenizer: PreTrainedTokenizerBase,
    *,
    source: str,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> tuple[LoadedRows, tuple[str, ...], dict[str, int]]:
    """Return the rows whose texts can be used, the names of the texts, and how many rows were skipped, by reason.

    The columns of the tokens are read.
    """
    names = find_columns(rows.dataset, source=source)
    rows, left_out = labeled_true(rows)
    rows = rows.read(with_row_options(names, rows.dataset.column_names))
    rows = rows.without(text_problems({name: rows.columns[name] for name in names}))
    settings: dict[str, Any] = {"source": source, "chat_template_kwargs": chat_template_kwargs}
    return rows.without(template_problems(rows.columns, tokenizer, **settings)), names, left_out


def _report(
    rows: LoadedRows,
    good: LoadedRows,
    names: Sequence[str],
    rows_read: int,
    measured: Sequence[TokenizedText],
    tokenizer: PreTrainedTokenizerBase,
    role: str,
    limit: Limit,
    left_out: dict[str, int],
) -> SetReport:
    layout, count = layout_of(rows.dataset, source=rows.source), len(good.dataset)
    filled = sum(limit.tokens is not None and text.given >= limit.tokens for text in measured)
    return report_set(
        rows,
        good.columns,
        rows_read,
        role=role,
        layout=layout.taken_for(layout.texts_name),
        columns=[*names, *(["label"] if left_out else [])],
        left_out=left_out,
        noticed={
            "that are there already": count - len(fingerprints(good.columns, [*names, *ROW_OPTIONS])),
            f"of {len(measured)} whose prompt alone fills {limit.name}": filled,
            BEGUN: begun([good.columns[names[0]]], tokenizer),
        },
        lengths=[Lengths.of("text", [len(text.ids) for text in measured], limit)],
    )


def find_columns(dataset: Dataset, *, source: str) -> tuple[str, ...]:
    """Return the columns with the texts of a set. Raises InputError, with its layout, when there are none."""
    layout = layout_of(dataset, source=source)
    if not layout.texts:
        raise InputError(
            f"{source}: columns {', '.join(dataset.column_names) or 'none'}; texts need messages, or prompt and"
            f" completion, or text.{layout.sentence}"
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


def tokenize_texts(
    columns: Mapping[str, Sequence[Any]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    source: str,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> list[TokenizedText]:
    """Return the checked rows, with the `ROW_OPTIONS` that they have, as ids that are not cut to any length."""
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
    """Split ids into prompt and completion. A token that merges the end of one with the other's beginning counts."""
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
