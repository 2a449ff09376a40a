"""Prompts: checked, tokenized once, never longer than the run allows. A loaded set as a whole, a stream row by row."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, get_args

from hf_rlhf.data.json_columns import keep_own_keys, make_dataset, put_beside
from hf_rlhf.data.layouts import Layout, layout_of
from hf_rlhf.data.preferences import PreferenceReport, fingerprint, prepare_with_rows
from hf_rlhf.data.prompt_checks import (
    OVERLONG_CHOICES,
    Overlong,
    check_prompts,
    prompt_columns,
    prompt_of,
    prompt_problems,
    require_no_problems,
    require_prompts,
)
from hf_rlhf.data.rows import list_rows, read_columns, require_dataset
from hf_rlhf.data.streamed_prompts import prepare_streamed_prompts
from hf_rlhf.data.tokens import options_by_row, tokenize_prompts, with_row_options
from hf_rlhf.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

LoadedOrStreamed = TypeVar("LoadedOrStreamed", "Dataset", "IterableDataset")


def prepare_prompts(
    dataset: LoadedOrStreamed,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_prompt_length: int,
    source: str,
    overlong_prompts: Overlong = "error",
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> LoadedOrStreamed:
    """The set with `prompt` as given (text or messages), `prompt_ids` (list of int) and every other column unchanged.

    Where the rows are dialogues, with or without their question as text in `prompt`, the prompt is the messages before
    the answer, and preference pairs give each of their prompts once. Messages go through the tokenizer's chat template
    with a generation prompt, with the row's `tools` and `chat_template_kwargs` where there are such columns, and
    `chat_template_kwargs` where the row does not say otherwise. Text is tokenized as it is, with one BOS where the
    tokenizer adds one. `overlong_prompts` says what becomes of prompts above `max_prompt_length` tokens:
    "truncate_left" keeps the last tokens of `prompt_ids` and leaves `prompt` whole.

    Of an `IterableDataset` the first row is read here, and each row is checked and tokenized when its turn comes. It
    needs a `prompt` column: the distinct prompts of preference pairs are only known once all have been read.

    Raises InputError for an empty set, a missing column, bad values (row numbers count from 0), messages without a
    chat template, and prompts that are too long.
    """
    import datasets

    if overlong_prompts not in get_args(Overlong):
        raise InputError(f"overlong_prompts={overlong_prompts!r}; choose one of {', '.join(get_args(Overlong))}")
    if max_prompt_length < 1:
        raise InputError(f"max_prompt_length={max_prompt_length} leaves no room for a prompt; use at least 1")
    if isinstance(dataset, datasets.IterableDataset):
        return prepare_streamed_prompts(
            dataset,
            tokenizer,
            max_prompt_length=max_prompt_length,
            source=source,
            overlong_prompts=overlong_prompts,
            chat_template_kwargs=chat_template_kwargs,
        )
    dataset = with_prompts(keep_own_keys(require_dataset(dataset, source=source)), source=source).dataset
    columns = read_columns(dataset, with_row_options(["prompt"], dataset.column_names), source=source)
    check_prompts(columns["prompt"], source=source)
    settings: dict[str, Any] = {"options": options_by_row(columns), "chat_template_kwargs": chat_template_kwargs}
    prompt_ids = tokenize_prompts(columns["prompt"], tokenizer, source=source, **settings)
    kept = list(range(len(prompt_ids)))
    if longer := require_fitting(prompt_ids, max_prompt_length, overlong_prompts, source=source):
        filters = overlong_prompts == "filter"
        logger.warning("%s; %s", longer, "left out" if filters else "cut on the left")
        kept = [row for row in kept if not filters or len(prompt_ids[row]) <= max_prompt_length]
    if "prompt_ids" in dataset.column_names:
        dataset = dataset.remove_columns("prompt_ids")
    dataset = dataset.select(kept) if len(kept) < len(dataset) else dataset
    return dataset.add_column("prompt_ids", [prompt_ids[row][-max_prompt_length:] for row in kept])  # pyright: ignore[reportCallIssue]


def prompt_rows(
    prompts: Sequence[Any],
    tokenizer: PreTrainedTokenizerBase,
    max_prompt_length: int | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Rows with `prompt` and `prompt_ids` from prompts without a dataset: all text, all messages, or all token ids.

    Token ids stay what they are. Raises InputError as `prepare_prompts` does.
    """
    if len(prompts) == 0:
        raise InputError("no prompts were given")
    prompts = [prompt.tolist() if hasattr(prompt, "tolist") else prompt for prompt in prompts]  # tensors of ids
    if _are_ids(prompts[0]):
        if bad := [row for row, ids in enumerate(prompts) if not _are_ids(ids, vocab_size=len(tokenizer))]:
            raise InputError(
                f"prompts: {list_rows(bad)} of {len(prompts)} (counted from 0) are not what the first is: a list of"
                f" one or more ids of the tokenizer's vocabulary of {len(tokenizer)}"
            )
        prompt_ids = [list(ids) for ids in prompts]
        prompts = tokenizer.batch_decode(prompt_ids)
    else:
        check_prompts(prompts, source="prompts")
        prompt_ids = tokenize_prompts(prompts, tokenizer, source="prompts", chat_template_kwargs=chat_template_kwargs)
    if max_prompt_length is not None:
        require_fitting(prompt_ids, max_prompt_length, "error", source="prompts")
    return [{"prompt": prompt, "prompt_ids": ids} for prompt, ids in zip(prompts, prompt_ids, strict=True)]


def _are_ids(value: Any, vocab_size: int | None = None) -> bool:
    """Return whether this is a list of one or more token ids."""
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        return False
    return all(isinstance(token, int) and (vocab_size is None or 0 <= token < vocab_size) for token in value)


class PromptSet(NamedTuple):
    """Prompts, with the rows and the preference pairs that they come from.

    `pairs` reports on the pairs. `rows` has each row's number before.
    """

    dataset: Dataset
    rows: Sequence[int]
    pairs: PreferenceReport | None = None


def with_prompts(dataset: Dataset, *, source: str) -> PromptSet:
    """The set itself when it has prompts; else those of its dialogues, of preference pairs the distinct ones."""
    layout = layout_of(dataset, source=source)
    require_prompts(layout, dataset.column_names, source=source)
    if layout.prompts != "pairs":
        made = dataset if layout.prompts == "prompt" else _before_answers(dataset, layout, source=source)
        return PromptSet(made, range(len(dataset)))
    (pairs, report), rows = prepare_with_rows(dataset, source=source)
    if "prompt" not in pairs.column_names:
        raise InputError(
            f'{source}: no column "prompt", and the pairs are plain text [{report.layout}], so their prompts cannot be '
            "told from their answers. Add a prompt column, or write the pairs as lists of messages"
        )
    columns = read_columns(pairs, with_row_options(["prompt"], pairs.column_names), source=source)
    first_rows = {fingerprint(*row): n for n, row in reversed(list(enumerate(zip(*columns.values(), strict=True))))}
    answers = [name for name in ("chosen", "rejected", "margin") if name in pairs.column_names]
    logger.info("%s; %d distinct prompts", report, len(first_rows))
    kept = sorted(first_rows.values())
    return PromptSet(pairs.select(kept).remove_columns(answers), [rows[row] for row in kept], report)


def _before_answers(dataset: Dataset, layout: Layout, *, source: str) -> Dataset:
    """The set with the messages before the last answer of `messages` as its prompts."""
    columns = read_columns(dataset, prompt_columns(layout, dataset.column_names), source=source)
    require_no_problems(prompt_problems(columns, layout), len(dataset), source=source)
    rows = (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
    made = make_dataset({"prompt": [prompt_of(row, prompts=layout.prompts) for row in rows]})
    return put_beside(made, dataset.with_format(None).remove_columns([n for n in columns if n == "prompt"]))


def require_fitting(
    prompt_ids: Sequence[Sequence[int]],
    limit: int,
    overlong_prompts: Overlong,
    *,
    source: str,
    place: Callable[[int], str] = str,
) -> str | None:
    """Say which prompts are above the limit, if any are; `place` says where a row stands.

    Raises InputError when that may not be ("error"), or leaves none ("filter").
    """
    too_long = [row for row, ids in enumerate(prompt_ids) if len(ids) > limit]
    if not too_long:
        return None
    longest = max(map(len, prompt_ids))
    message = (
        f"{source}: prompts longer than max_prompt_length={limit} tokens: {list_rows(list(map(place, too_long)))} of "
        f"{len(prompt_ids)}{', counted from 0' if place is str else ''}; the longest has {longest}"
    )
    if overlong_prompts == "error":
        raise InputError(f"{message}. Raise max_prompt_length to {longest}, or set {OVERLONG_CHOICES}")
    if overlong_prompts == "filter" and len(too_long) == len(prompt_ids):
        raise InputError(f'{message}. overlong_prompts="filter" leaves no prompt; raise max_prompt_length')
    return message
