"""Token ids of text, messages and prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hf_rlhf.data.files import list_rows
from hf_rlhf.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def text_ids(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """The ids of each text, with the special tokens that the tokenizer adds by itself."""
    return tokenizer(list(texts), verbose=False)["input_ids"]  # pyright: ignore[reportReturnType]


def chat_ids(
    dialogues: Sequence[Sequence[Mapping[str, Any]]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    add_generation_prompt: bool,
    source: str,
    first_row: int = 0,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> list[list[int]]:
    """The ids of each dialogue through the chat template. `first_row` is the row number of the first, for errors.

    Raises InputError for a tokenizer without a chat template, and with the row that a template refuses.
    """
    if not tokenizer.chat_template:
        raise InputError(
            f"{source}: the rows are lists of messages, and the tokenizer {tokenizer.name_or_path or ''} has no chat "
            "template. Pass plain text, set --chat_template_path, or use an instruct model"
        )
    all_ids = []
    for row, dialogue in enumerate(dialogues, start=first_row):
        # datasets fills keys that only other messages have with None, and templates take those for given
        # (transformers removes them itself since some version after 5.8)
        messages = [{key: value for key, value in message.items() if value is not None} for message in dialogue]
        try:
            encoded = tokenizer.apply_chat_template(
                messages,
                add_generation_prompt=add_generation_prompt,
                tokenize=True,
                return_dict=True,
                **(chat_template_kwargs or {}),
            )
        except Exception as error:  # templates raise what they like: jinja2's errors, TypeError, ...
            raise InputError(
                f"{source}: the chat template refuses row {row} (rows count from 0): {error}. Mend the row's messages, "
                "or set --chat_template_path"
            ) from error
        all_ids.append(encoded["input_ids"])  # pyright: ignore
    return all_ids


def tokenize_prompts(
    prompts: Sequence[Any],
    tokenizer: PreTrainedTokenizerBase,
    chat_template_kwargs: Mapping[str, Any],
    *,
    source: str,
    first_row: int = 0,
) -> list[list[int]]:
    """The ids of prompts that are all text or all messages. `first_row` is the row number of the first, for errors."""
    if isinstance(prompts[0], str):
        all_ids = text_ids(prompts, tokenizer)
    else:
        all_ids = chat_ids(
            prompts,
            tokenizer,
            add_generation_prompt=True,
            source=source,
            first_row=first_row,
            chat_template_kwargs=chat_template_kwargs,
        )
    if empty := [row for row, ids in enumerate(all_ids, start=first_row) if not ids]:
        raise InputError(
            f'{source}: column "prompt": no tokens in {list_rows(empty)} (rows count from 0). '
            "Every prompt needs at least one token"
        )
    return all_ids
