"""Prompts of a stream: each checked and tokenized when its turn comes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hf_rlhf.data.checks import (
    OVERLONG_CHOICES,
    PROMPT_RULE,
    Overlong,
    prompt_problem,
    prompt_problems,
    require_prompts,
)
from hf_rlhf.data.dialogues import MalformedDialogue
from hf_rlhf.data.json_columns import keep_own_keys_of_stream
from hf_rlhf.data.layouts import Layout, find_layout, prompt_columns, prompt_of
from hf_rlhf.data.tokens import tokenize_prompts
from hf_rlhf.errors import InputError

if TYPE_CHECKING:
    from datasets import IterableDataset
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


def prepare_streamed_prompts(
    dataset: IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_prompt_length: int,
    source: str,
    overlong_prompts: Overlong,
    chat_template_kwargs: Mapping[str, Any] | None,
) -> IterableDataset:
    """Prepare a stream; the settings are those of `prepare_prompts`. Reads the first row."""
    dataset = keep_own_keys_of_stream(dataset.with_format(None))
    first = next(iter(dataset), None)
    if first is None:
        raise InputError(f"{source}: the stream is empty (0 rows). Check the files, the split and any filter")
    layout = find_layout({name: [value] for name, value in first.items()})
    if layout.prompts == "pairs" and "prompt" not in first:
        raise InputError(
            f'{source}: no column "prompt", and the prompts of preference pairs are known only once all have been'
            " read, which a stream leaves for later. Give a column prompt, or load the set with streaming=False"
        )
    if layout.prompts == "public":
        raise InputError(
            f"{source}: a stream of {layout} has no column of prompts, and its rows are converted only as a whole. Load"
            " the set with streaming=False"
        )
    require_prompts(layout, list(first), source=source)
    if layout.prompts != "prompt":
        dataset = _with_prompts(dataset, layout, first, source=source)
        first = next(iter(dataset))
    conversational = isinstance(first["prompt"], list)
    warned = False

    def with_ids(row: Mapping[str, Any], number: int) -> dict[str, list[int]]:
        nonlocal warned
        where = f"{source}: row {number} of the stream (rows count from 0)"
        if problem := prompt_problem(row.get("prompt"), conversational=conversational):
            raise InputError(
                f'{where}: column "prompt": {problem}. {PROMPT_RULE}, and all are of the kind of the first. '
                "Mend this row, or leave it out with dataset.filter(...)"
            )
        settings: dict[str, Any] = {"options": [row], "chat_template_kwargs": chat_template_kwargs}
        ids = tokenize_prompts([row["prompt"]], tokenizer, source=source, first_row=number, **settings)[0]
        if len(ids) > max_prompt_length:
            message = f"{where}: the prompt has {len(ids)} tokens, above max_prompt_length={max_prompt_length}"
            if overlong_prompts == "error":
                raise InputError(f"{message}. Raise max_prompt_length, or set {OVERLONG_CHOICES}")
            if not warned:
                does = "leaves such prompts out" if overlong_prompts == "filter" else "cuts such prompts on the left"
                logger.warning('%s; overlong_prompts="%s" %s, said once', message, overlong_prompts, does)
                warned = True
        return {"prompt_ids": ids if overlong_prompts == "filter" else ids[-max_prompt_length:]}

    with_ids(first, 0)  # so that most mistakes show before a model is loaded
    dataset = dataset.map(with_ids, with_indices=True)
    if overlong_prompts == "filter":
        dataset = dataset.filter(lambda ids: len(ids) <= max_prompt_length, input_columns="prompt_ids")
    return dataset


def _with_prompts(
    dataset: IterableDataset, layout: Layout, first: Mapping[str, Any], *, source: str
) -> IterableDataset:
    """Return the stream with the messages before each row's answer as its prompt, and without the answers of pairs."""
    names = prompt_columns(layout, list(first))

    def with_prompt(row: Mapping[str, Any], number: int) -> dict[str, Any]:
        found = prompt_problems({name: [row.get(name)] for name in names}, layout)
        problems = [f'column "{name}": {problem}' for name, (problem,) in found.items() if problem]
        try:
            if not problems:
                return {"prompt": prompt_of(row, prompts=layout.prompts, pairs=layout.pairs)}
        except MalformedDialogue as error:
            problems = [str(error)]
        raise InputError(
            f"{source}: row {number} of the stream (rows count from 0): {problems[0]}. The rows are taken for"
            f" {layout}, as the first is. Mend this row, or leave it out with dataset.filter(...)"
        )

    answers = [name for name in names if name not in ("prompt", "messages")]
    return dataset.map(with_prompt, with_indices=True, remove_columns=answers)
