"""Token ids of text, messages and prompts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from hf_rlhf.data.files import list_rows
from hf_rlhf.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class RefusedByTemplate(ValueError):
    """A chat template does not take a dialogue; the message says what it says."""


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
    require_chat_template(tokenizer, source=source)
    all_ids = []
    for row, dialogue in enumerate(dialogues, start=first_row):
        try:
            encoded = _apply(tokenizer, dialogue, add_generation_prompt, chat_template_kwargs, tokenize=True)
        except Exception as error:  # templates raise what they like: jinja2's errors, TypeError, ...
            raise InputError(
                f"{source}: the chat template refuses row {row} (rows count from 0): {error}. Mend the row's messages, "
                "or set --chat_template_path"
            ) from error
        all_ids.append(encoded["input_ids"])
    return all_ids


def chat_text(
    dialogue: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    add_generation_prompt: bool,
    columns: Mapping[str, Any] = MappingProxyType({}),
) -> str:
    """The dialogue as the chat template writes it, with what trl's trainers give it of the row's other columns.

    Raises RefusedByTemplate.
    """
    try:
        kwargs = {**(columns.get("chat_template_kwargs", {}))}
        tools = columns.get("tools")
        kwargs |= {"tools": json.loads(tools) if isinstance(tools, str) else tools}
        return _apply(tokenizer, dialogue, add_generation_prompt, kwargs, tokenize=False)
    except Exception as error:
        raise RefusedByTemplate(f"the chat template refuses it ({error})") from error


def prompt_refusal(prompt: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase) -> str | None:
    """What the chat template has against a prompt; None when nothing."""
    try:
        chat_text(prompt, tokenizer, add_generation_prompt=True)
    except RefusedByTemplate as refusal:
        return str(refusal)
    return None


def require_chat_template(tokenizer: PreTrainedTokenizerBase, *, source: str) -> None:
    """Raise InputError for a tokenizer without one."""
    if not tokenizer.chat_template:
        raise InputError(
            f"{source}: the rows are lists of messages, and the tokenizer {tokenizer.name_or_path or ''} has no chat "
            "template. Pass plain text, set --chat_template_path, or use an instruct model"
        )


def _apply(
    tokenizer: PreTrainedTokenizerBase,
    dialogue: Sequence[Mapping[str, Any]],
    add_generation_prompt: bool,
    kwargs: Mapping[str, Any] | None,
    *,
    tokenize: bool,
) -> Any:
    # datasets fills keys that only other messages have with None, and templates take those for given
    # (transformers removes them itself since some version after 5.8)
    messages = [{key: value for key, value in message.items() if value is not None} for message in dialogue]
    return tokenizer.apply_chat_template(
        messages, add_generation_prompt=add_generation_prompt, tokenize=tokenize, return_dict=tokenize, **(kwargs or {})
    )


def prompt_ids(
    prompts: Sequence[Any],
    tokenizer: PreTrainedTokenizerBase,
    chat_template_kwargs: Mapping[str, Any],
    *,
    source: str,
    first_row: int = 0,
) -> list[list[int]]:
    """As `tokenize_prompts`, and prompts may have no tokens."""
    if isinstance(prompts[0], str):
        return text_ids(prompts, tokenizer)
    return chat_ids(
        prompts,
        tokenizer,
        add_generation_prompt=True,
        source=source,
        first_row=first_row,
        chat_template_kwargs=chat_template_kwargs,
    )


def tokenize_prompts(
    prompts: Sequence[Any],
    tokenizer: PreTrainedTokenizerBase,
    chat_template_kwargs: Mapping[str, Any],
    *,
    source: str,
    first_row: int = 0,
) -> list[list[int]]:
    """The ids of prompts that are all text or all messages. `first_row` is the row number of the first, for errors."""
    all_ids = prompt_ids(prompts, tokenizer, chat_template_kwargs, source=source, first_row=first_row)
    if empty := [row for row, ids in enumerate(all_ids, start=first_row) if not ids]:
        raise InputError(
            f'{source}: column "prompt": no tokens in {list_rows(empty)} (rows count from 0). '
            "Every prompt needs at least one token"
        )
    return all_ids
