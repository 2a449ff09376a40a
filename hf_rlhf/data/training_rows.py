"""Rows as the ids that trl's trainers train on: training, the data report and reward models read a row alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hf_rlhf.data.json_columns import decode_exactly
from hf_rlhf.data.texts import find_columns, tokenize_texts
from hf_rlhf.data.tokens import (
    RefusedByTemplate,
    assistant_mask,
    options_by_row,
    token_ids,
    with_row_options,
)
from hf_rlhf.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

Columns = Mapping[str, Sequence[Any]]


def pair_ids(columns: Columns, tokenizer: PreTrainedTokenizerBase, *, source: str) -> dict[str, list[list[int]]]:
    """Return the ids of the prompt with each answer, `chosen` and `rejected`, of preferences in TRL's format."""
    nothing = [] if isinstance(columns["chosen"][0], list) else ""
    prompts = columns.get("prompt") or [nothing] * len(columns["chosen"])
    settings: dict[str, Any] = {"continued": False, "source": source, "options": options_by_row(columns)}
    return {
        name: token_ids([p + answer for p, answer in zip(prompts, columns[name], strict=True)], tokenizer, **settings)
        for name in ("chosen", "rejected")
    }


def tokenized_pairs(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, *, source: str, num_proc: int | None = None
) -> Dataset:
    """Return preferences in TRL's format as trl's RewardTrainer trains on them: `chosen_ids`, `rejected_ids`, `margin`.

    `row` is the number of each row in `dataset`: the trainer skips those that are too long. `num_proc` processes
    share the work.
    """
    from datasets import concatenate_datasets

    names = [name for name in ("prompt", "chosen", "rejected") if name in dataset.column_names]

    def tokenize(columns: Columns) -> dict[str, Any]:
        return {f"{name}_ids": ids for name, ids in pair_ids(columns, tokenizer, source=source).items()}

    tokenized = _tokenized(dataset, names, tokenize, source, num_proc)
    tokenized = tokenized.add_column("row", list(range(len(dataset))))  # pyright: ignore
    if "margin" not in dataset.column_names:
        return tokenized
    return concatenate_datasets([tokenized, dataset.select_columns(["margin"])], axis=1)


def group_ids(columns: Columns, tokenizer: PreTrainedTokenizerBase, *, source: str) -> list[list[list[int]]]:
    """Return the ids of the prompt with each of its completions, of groups of rated completions."""
    settings: dict[str, Any] = {"continued": False, "source": source}
    rows = zip(columns["prompt"], columns["completions"], options_by_row(columns), strict=True)
    return [
        token_ids([prompt + each for each in completions], tokenizer, options=[options] * len(completions), **settings)
        for prompt, completions, options in rows
    ]


def tokenized_groups(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, *, source: str, num_proc: int | None = None
) -> Dataset:
    """Return rated groups as `RatingTrainer` trains on them: `completions_ids`, a list a completion, and `ratings`.

    `row` is the number of each row in `dataset`; `num_proc` processes share the work.
    """
    from datasets import concatenate_datasets

    def tokenize(columns: Columns) -> dict[str, Any]:
        return {"completions_ids": group_ids(columns, tokenizer, source=source)}

    tokenized = _tokenized(dataset, ["prompt", "completions"], tokenize, source, num_proc)
    tokenized = tokenized.add_column("row", list(range(len(dataset))))  # pyright: ignore
    return concatenate_datasets([tokenized, dataset.select_columns(["ratings"])], axis=1)


def tokenized_texts(
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    source: str,
    assistant_only: bool = False,
    chat_template: str | None = None,
    num_proc: int | None = None,
) -> Dataset:
    """Return demonstrations as trl's SFTTrainer trains on them: `input_ids`, and masks of the tokens that count.

    Args:
        dataset: rows with `messages`, `prompt` and `completion`, or `text`.
        tokenizer: the policy's.
        source: names the set in errors.
        assistant_only: also `assistant_masks`, by the template's generation marks.
        chat_template: a twin of the tokenizer's template that has such marks, where that one has none.
        num_proc: how many processes share the work.

    Raises InputError for a row in which the template marks nothing as the assistant's.
    """
    names = find_columns(dataset, source=source)

    def tokenize(columns: Columns) -> dict[str, Any]:
        texts = tokenize_texts(columns, tokenizer, source=source)
        made: dict[str, Any] = {"input_ids": [text.ids for text in texts]}
        if "completion" in columns:
            made["completion_mask"] = [[0] * text.given + [1] * (len(text.ids) - text.given) for text in texts]
        if assistant_only:
            made["assistant_masks"] = _assistant_masks(columns, tokenizer, chat_template, source)
        return made

    return _tokenized(dataset, names, tokenize, source, num_proc)


def _assistant_masks(
    columns: Columns, tokenizer: PreTrainedTokenizerBase, chat_template: str | None, source: str
) -> list[list[int]]:
    dialogues = columns.get("messages") or [
        prompt + completion for prompt, completion in zip(columns["prompt"], columns["completion"], strict=True)
    ]
    masks = []
    for dialogue, options in zip(dialogues, options_by_row(columns), strict=True):
        try:
            mask = assistant_mask(dialogue, tokenizer, options=options, chat_template=chat_template)
        except RefusedByTemplate as refusal:
            raise InputError(f"{source}: {refusal}") from refusal
        if 1 not in mask:
            raise InputError(
                "assistant_only_loss=True is invalid: the chat template marks nothing as the assistant's ({% generation"
                f" %}} ... {{% endgeneration %}}) in this row of the {source} set: {dialogue}. Set it to false, or"
                " give a template with these marks (chat_template_path)"
            )
        masks.append(mask)
    return masks


def _tokenized(
    dataset: Dataset,
    names: Sequence[str],
    tokenize: Callable[[Columns], dict[str, Any]],
    source: str,
    num_proc: int | None,
) -> Dataset:
    """Return what `tokenize` makes of these columns and the row options, part by part, as lists take much memory."""
    wanted = with_row_options(names, dataset.column_names)
    return decode_exactly(dataset.with_format(None).select_columns(wanted)).map(
        tokenize,
        batched=True,
        num_proc=num_proc,
        remove_columns=wanted,
        keep_in_memory=True,
        load_from_cache_file=False,  # the name of a cached file does not tell versions of this package apart
        desc=f"Tokenizing {source} dataset",
    )
