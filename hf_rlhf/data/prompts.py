"""Prompts: checked, tokenized once, never longer than the run allows. A loaded set as a whole, a stream row by row."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar, get_args

from hf_rlhf.data.checks import (
    OVERLONG_CHOICES,
    PROMPT_RULE,
    Overlong,
    prompt_problem,
    prompt_problems,
    require_prompts,
)
from hf_rlhf.data.json_columns import make_dataset, put_beside
from hf_rlhf.data.layouts import PREFERENCE_COLUMNS, Layout, layout_of, prompt_columns, prompt_of
from hf_rlhf.data.preferences import PreferenceReport, keep_pairs
from hf_rlhf.data.prepared import PreparedSet, TokenizerState
from hf_rlhf.data.report import (
    BEGUN,
    NO_TURN,
    Lengths,
    Limit,
    begun,
    count_left_out,
    report_set,
)
from hf_rlhf.data.rows import BadRow, BadRows, LoadedRows, fingerprint, fingerprints, list_rows
from hf_rlhf.data.shapes import ANSWER_COLUMNS, in_shape
from hf_rlhf.data.streamed_prompts import prepare_streamed_prompts
from hf_rlhf.data.tokens import (
    NOTHING,
    ROW_OPTIONS,
    RefusedByTemplate,
    options_by_row,
    require_chat_template,
    row_ids,
    scored_length,
    text_ids,
    tokenize_prompts,
    with_row_options,
)
from hf_rlhf.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

LoadedOrStreamed = TypeVar("LoadedOrStreamed", "Dataset", "IterableDataset")

_AGAIN = "with a prompt that is there already"


def prepare_prompts(
    dataset: LoadedOrStreamed,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_prompt_length: int,
    source: str,
    overlong_prompts: Overlong = "error",
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> LoadedOrStreamed:
    """Add `prompt_ids` (list of int) to a set; `prompt` (text or messages) and every other column stay as given.

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

    settings: dict[str, Any] = {"overlong": overlong_prompts, "chat_template_kwargs": chat_template_kwargs}
    limit = prompt_limit(max_prompt_length, overlong_prompts)
    if isinstance(dataset, datasets.IterableDataset):
        return prepare_streamed_prompts(
            dataset,
            tokenizer,
            max_prompt_length=max_prompt_length,
            source=source,
            overlong_prompts=overlong_prompts,
            chat_template_kwargs=chat_template_kwargs,
        )
    rows = LoadedRows.given(dataset, source=source)
    return prepare_prompt_set(rows, tokenizer, role=source, limit=limit, **settings).dataset


def prompt_limit(max_prompt_length: int, overlong_prompts: str) -> Limit:
    """Return the limit of prompts with what becomes of longer ones. Raises InputError for values that cannot be."""
    if overlong_prompts not in get_args(Overlong):
        raise InputError(f"overlong_prompts={overlong_prompts!r}; choose one of {', '.join(get_args(Overlong))}")
    if max_prompt_length < 1:
        raise InputError(f"max_prompt_length={max_prompt_length} leaves no room for a prompt; use at least 1")
    then = {"error": "end the run", "filter": "are skipped"}.get(overlong_prompts, "are cut on the left")
    return Limit("max_prompt_length", max_prompt_length, then)


def prompt_settings(
    tokenizer: PreTrainedTokenizerBase, tokens: int | None, overlong: str, chat_template_kwargs: Any
) -> dict[str, Any]:
    """Return what the ids of prompts depend on besides the rows, by the names that `PPOTrainer` has for it."""
    return {
        "processing_class": TokenizerState.of(tokenizer),
        "max_prompt_length": tokens,
        "overlong_prompts": overlong,
        "chat_template_kwargs": dict(chat_template_kwargs or {}),
    }


def prepare_prompt_set(
    rows: LoadedRows,
    tokenizer: PreTrainedTokenizerBase,
    *,
    role: str,
    limit: Limit,
    overlong: Overlong = "error",
    chat_template_kwargs: Mapping[str, Any] | None = None,
    reward_tokenizers: Mapping[str, PreTrainedTokenizerBase] = NOTHING,
) -> PreparedSet:
    """Check, tokenize and report on the rows that PPO takes its prompts from, each once by every tokenizer.

    For the columns of the set see `prepare_prompts`, which raises what this does. A prompt that the chat template of a
    reward model refuses is a bad row too; `reward_tokenizers` has their names.
    """
    read, found = rows.rows_read, rows.dataset.column_names
    layout = layout_of(rows.dataset, source=rows.source)
    require_prompts(layout, found, source=rows.source)
    good, names, left_out = _good_prompts(rows, layout)
    good, ids, scored = _tokenized(good, tokenizer, chat_template_kwargs, reward_tokenizers)
    lengths, kept = list(map(len, ids)), range(len(ids))
    if limit.tokens is not None and (longer := require_fitting(ids, limit.tokens, overlong, rows=good)):
        logger.warning("%s; %s", longer, "skipped" if overlong == "filter" else "cut on the left")
        kept = [row for row in kept if overlong != "filter" or lengths[row] <= limit.tokens]
    prompts = good.columns["prompt"]
    different = fingerprints(good.columns, ["prompt", *ROW_OPTIONS])
    report = report_set(
        rows,
        good.columns,
        read,
        role=role,
        layout=layout.taken_for(layout.prompts_name),
        columns=names,
        shown=["prompt"],
        left_out=left_out,
        noticed={
            _AGAIN: len(prompts) - len(different),
            BEGUN: begun([prompts], tokenizer),
            NO_TURN: len(prompts) if tokenizer.chat_template and isinstance(prompts[0], str) else 0,
        },
        lengths=[Lengths.of("prompt", lengths, limit)],
        others_are="passed to the rewards",
    )
    if len(kept) < len(prompts):
        good = good.select(kept)
    dataset = good.dataset.remove_columns([name for name in good.dataset.column_names if name == "prompt_ids"])
    most = limit.tokens or 0  # [-0:] is all
    dataset = dataset.add_column("prompt_ids", [ids[row][-most:] for row in kept])  # pyright: ignore[reportCallIssue]
    return PreparedSet(
        dataset,
        report,
        good.place,
        prompt_settings(tokenizer, limit.tokens, overlong, chat_template_kwargs),
        [(state, [each[row] for row in kept]) for state, each in scored],
        frozenset(different),
    )


def _good_prompts(rows: LoadedRows, layout: Layout) -> tuple[LoadedRows, Sequence[str], dict[str, int]]:
    """Return the rows with their prompts checked, the columns that were read, and how many rows were skipped and why.

    Rows of a public format give each prompt once.
    """
    if layout.prompts == "public":
        shaped = in_shape(rows)
        good = _each_prompt_once(shaped.rows)
        return good, shaped.columns, {_AGAIN: shaped.rows_in - len(good.dataset)}
    found = rows.dataset.column_names
    names = prompt_columns(layout, found)
    good, skipped = _checked_prompts(rows.read(with_row_options(names, found)), layout, names)
    return good, names, skipped


def _checked_prompts(rows: LoadedRows, layout: Layout, names: Sequence[str]) -> tuple[LoadedRows, dict[str, int]]:
    """Return the rows whose prompt can be used, with it in a column, and how many others were skipped, by reason."""
    rule = f"{PROMPT_RULE}. "
    good = rows.without(prompt_problems({name: rows.columns[name] for name in names}, layout), rule)
    good, pairs = _with_prompts(good, layout)
    left_out = count_left_out(pairs, len(good.dataset), _AGAIN)
    if layout.prompts != "prompt":
        told = [prompt_problem(prompt, conversational=True) for prompt in good.columns["prompt"]]
        good = good.without({"prompt": told}, rule)
    return good, left_out


def _with_prompts(rows: LoadedRows, layout: Layout) -> tuple[LoadedRows, PreferenceReport | None]:
    """Return rows with their prompts in a column that is read; of pairs the distinct ones, and the report on them."""
    if layout.prompts == "prompt":
        return rows, None
    options = {name: values for name, values in rows.columns.items() if name in ROW_OPTIONS}
    pairs = None
    if layout.prompts == "messages":
        prompts = [prompt_of(row, prompts="messages") for row in rows.by_row()]
    else:
        rows, kept, pairs = keep_pairs(rows, layout.pairs)
        if kept[0].prompt is None:
            raise InputError(
                f'{rows.source}: no column "prompt", and the pairs are plain text [{pairs.layout}], so their prompts'
                " cannot be told from their answers. Add a prompt column, or write the pairs as lists of messages"
            )
        options = {name: rows.columns[name] for name in options}
        keys = [fingerprint(pair.prompt, *own) for pair, *own in zip(kept, *options.values(), strict=True)]
        first = _first_of_each(keys)
        logger.info("%s; %d distinct prompts", pairs, len(first))
        rows, prompts = rows.select(first), [kept[row].prompt for row in first]
        options = {name: rows.columns[name] for name in options}
    used = PREFERENCE_COLUMNS if pairs else ("prompt",)
    others = rows.dataset.with_format(None).remove_columns([n for n in used if n in rows.dataset.column_names])
    made = make_dataset({"prompt": prompts})
    dataset = put_beside(made, others) if others.column_names else made
    return replace(rows, dataset=dataset, columns={"prompt": prompts, **options}), pairs


def _each_prompt_once(rows: LoadedRows) -> LoadedRows:
    """Return the rows of a public format with each prompt once, and without the answers."""
    options = {name: rows.columns[name] for name in ROW_OPTIONS if name in rows.columns}
    keys = [fingerprint(*row) for row in zip(rows.columns["prompt"], *options.values(), strict=True)]
    rows = rows.select(_first_of_each(keys))
    answers = [name for name in ANSWER_COLUMNS if name in rows.dataset.column_names]
    columns = {name: rows.columns[name] for name in ("prompt", *options)}
    return replace(rows, dataset=rows.dataset.remove_columns(answers), columns=columns)


def _first_of_each(keys: Sequence[bytes]) -> list[int]:
    """Return the numbers of the rows whose key is none of an earlier row."""
    return sorted({key: row for row, key in reversed(list(enumerate(keys)))}.values())


def _tokenized(
    rows: LoadedRows,
    tokenizer: PreTrainedTokenizerBase,
    chat_template_kwargs: Mapping[str, Any] | None,
    reward_tokenizers: Mapping[str, PreTrainedTokenizerBase],
) -> tuple[LoadedRows, list[list[int]], list[tuple[TokenizerState, list[int]]]]:
    """Return the prompts that all chat templates take and that have tokens, their ids, and their lengths per reward."""
    prompts, options = rows.columns["prompt"], options_by_row(rows.columns)
    texts = isinstance(prompts[0], str)
    if not texts:
        require_chat_template(tokenizer, source=rows.source)
        for name, each in reward_tokenizers.items():
            require_chat_template(each, source=f"{rows.source} for the reward model {name!r}")
    ids = text_ids(prompts, tokenizer, continued=True) if texts else [[] for _ in prompts]
    problems: list[str | None] = [None] * len(prompts)
    scored = [[0] * len(prompts) for _ in reward_tokenizers]
    for row, (prompt, own) in enumerate(zip(prompts, options, strict=True)):
        trying = ""
        try:
            if not texts:
                settings: dict[str, Any] = {"options": own, "chat_template_kwargs": chat_template_kwargs}
                ids[row] = row_ids(prompt, tokenizer, continued=True, **settings)
            if not ids[row]:
                problems[row] = "no tokens"
                continue
            for (name, each), lengths in zip(reward_tokenizers.items(), scored, strict=True):
                trying = f"reward model {name!r}: "
                lengths[row] = scored_length(prompt, each, own)
        except RefusedByTemplate as refusal:
            problems[row] = f"{trying}{refusal}"
    good = rows.good({"prompt": problems})
    states = map(TokenizerState.of, reward_tokenizers.values())
    counted = [(state, [lengths[row] for row in good]) for state, lengths in zip(states, scored, strict=True)]
    return rows if len(good) == len(prompts) else rows.select(good), [ids[row] for row in good], counted


def prompt_rows(
    prompts: Sequence[Any],
    tokenizer: PreTrainedTokenizerBase,
    max_prompt_length: int | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Make rows with `prompt` and `prompt_ids` of prompts without a dataset: all text, all messages, or all ids.

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
        conversational = isinstance(next((prompt for prompt in prompts if prompt is not None), None), list)
        problems = [prompt_problem(prompt, conversational=conversational) for prompt in prompts]
        bad = [BadRow(str(row), f'column "prompt": {problem}') for row, problem in enumerate(problems) if problem]
        BadRows(None).add_all(bad, source="prompts", total=len(prompts), rule=f"{PROMPT_RULE}. ")
        prompt_ids = tokenize_prompts(prompts, tokenizer, source="prompts", chat_template_kwargs=chat_template_kwargs)
    if max_prompt_length is not None:
        require_fitting(prompt_ids, max_prompt_length, "error")
    return [{"prompt": prompt, "prompt_ids": ids} for prompt, ids in zip(prompts, prompt_ids, strict=True)]


def _are_ids(value: Any, vocab_size: int | None = None) -> bool:
    """Return whether this is a list of one or more token ids."""
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        return False
    return all(isinstance(token, int) and (vocab_size is None or 0 <= token < vocab_size) for token in value)


def require_fitting(
    prompt_ids: Sequence[Sequence[int]],
    limit: int,
    overlong_prompts: Overlong,
    *,
    rows: LoadedRows | None = None,
) -> str | None:
    """Say which prompts are above the limit, if any are; `rows` say where each stands.

    Raises InputError when that may not be ("error"), or leaves none ("filter").
    """
    too_long = [row for row, ids in enumerate(prompt_ids) if len(ids) > limit]
    if not too_long:
        return None
    longest = max(map(len, prompt_ids))
    place, counted, source = (rows.place, rows.counted, rows.source) if rows else (str, ", counted from 0", "prompts")
    message = (
        f"{source}: prompts longer than max_prompt_length={limit} tokens: {list_rows(list(map(place, too_long)))} of "
        f"{len(prompt_ids)}{counted}; the longest has {longest}"
    )
    if overlong_prompts == "error":
        raise InputError(f"{message}. Raise max_prompt_length to {longest}, or set {OVERLONG_CHOICES}")
    if overlong_prompts == "filter" and len(too_long) == len(prompt_ids):
        raise InputError(f'{message}. overlong_prompts="filter" leaves no prompt; raise max_prompt_length')
    return message
