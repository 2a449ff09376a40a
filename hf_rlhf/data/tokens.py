"""Conversion of a row to token ids: the one way for checks, lengths, prompts, training and reward models."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from hf_rlhf.data.json_columns import ROW_OPTIONS
from hf_rlhf.data.rows import list_rows
from hf_rlhf.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ANY_ANSWER = {"role": "assistant", "content": "."}
"""Stand-in for a completion where its prompt is tried before anything is sampled."""

NOTHING: Mapping[str, Any] = MappingProxyType({})


class RefusedByTemplate(ValueError):
    """A chat template does not take a dialogue; the message is the template's."""


def with_row_options(names: Sequence[str], found: Sequence[str]) -> list[str]:
    """Return these columns and those of `ROW_OPTIONS` that are among the columns `found`."""
    return [*names, *(name for name in ROW_OPTIONS if name in found and name not in names)]


def options_by_row(columns: Mapping[str, Sequence[Any]]) -> list[Mapping[str, Any]]:
    """Return the `ROW_OPTIONS` of each row of some columns."""
    names = [name for name in ROW_OPTIONS if name in columns]
    rows = len(next(iter(columns.values()), ()))
    return [{name: columns[name][row] for name in names} for row in range(rows)]


def token_ids(
    values: Sequence[Any],
    tokenizer: PreTrainedTokenizerBase,
    *,
    continued: bool,
    source: str,
    options: Sequence[Mapping[str, Any]] | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    first_row: int = 0,
) -> list[list[int]]:
    """Return the ids of rows that are all text or all messages; see `row_ids` for the settings.

    `first_row` is the row number of the first, for errors.

    Raises InputError for messages without a chat template, and with the row that the template refuses.
    """
    if isinstance(values[0], str):
        return text_ids(values, tokenizer, continued=continued)
    require_chat_template(tokenizer, source=source)
    settings: dict[str, Any] = {"continued": continued, "chat_template_kwargs": chat_template_kwargs}
    all_ids = []
    for row, (value, own) in enumerate(zip(values, options or [NOTHING] * len(values), strict=True), start=first_row):
        try:
            all_ids.append(row_ids(value, tokenizer, options=own, **settings))
        except RefusedByTemplate as refusal:
            raise InputError(
                f"{source}: the chat template refuses row {row} (rows count from 0): {refusal.__cause__}. Mend the row,"
                " or set --chat_template_path"
            ) from refusal
    return all_ids


def row_ids(
    value: str | Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    continued: bool,
    options: Mapping[str, Any] = NOTHING,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> list[int]:
    """Return the ids of one row: a text, see `text_ids`, or messages through the chat template.

    Args:
        value: text, or messages.
        tokenizer: whose ids, and whose chat template.
        continued: the policy writes on; messages then end with the generation prompt.
        options: the row's `ROW_OPTIONS`, those that it has.
        chat_template_kwargs: what the template gets where the row does not say otherwise.

    Raises RefusedByTemplate.
    """
    if isinstance(value, str):
        return text_ids([value], tokenizer, continued=continued)[0]
    how = {"tokenize": True, "return_dict": True}
    return _render(value, tokenizer, continued, options, chat_template_kwargs, **how)["input_ids"]


def chat_text(
    dialogue: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    continued: bool,
    options: Mapping[str, Any] = NOTHING,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> str:
    """Return messages as the chat template writes them; see `row_ids`. Raises RefusedByTemplate."""
    return _render(dialogue, tokenizer, continued, options, chat_template_kwargs, tokenize=False)


def assistant_mask(
    dialogue: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    options: Mapping[str, Any],
    chat_template: str | None,
) -> list[int]:
    """Return 1 for each id of `row_ids` that the assistant wrote, by the template's generation marks, 0 elsewhere."""
    how = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
    return _render(dialogue, tokenizer, False, options, {"chat_template": chat_template}, **how)["assistant_masks"]


def _render(
    dialogue: Sequence[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerBase,
    continued: bool,
    options: Mapping[str, Any],
    chat_template_kwargs: Mapping[str, Any] | None,
    **how: Any,
) -> Any:
    messages = list(map(_without_none, dialogue))
    try:
        tools = _decoded(options.get("tools"))
        own = {} if not tools else {"tools": tools}  # for an empty list, templates write what stands around tools
        kwargs = {
            **(chat_template_kwargs or {}),
            **own,
            **_without_none(_decoded(options.get("chat_template_kwargs")) or {}),
        }
        return tokenizer.apply_chat_template(messages, add_generation_prompt=continued, **how, **kwargs)
    except Exception as error:  # templates raise what they like: jinja2's errors, TypeError, ...
        raise RefusedByTemplate(f"the chat template refuses it ({error})") from error


def _without_none(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Remove the None with which `datasets` fills keys that only other rows have, from messages or arguments."""
    return {key: value for key, value in keys.items() if value is not None}


def _decoded(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


# --- text --------------------------------------------------------------------------------------------------------


def text_ids(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, continued: bool) -> list[list[int]]:
    """Return the ids of each text, with the special tokens that the tokenizer puts around it, none of them twice.

    A whole text ends once: by what the tokenizer puts behind it, or else by the end token, as in trl's trainers. One
    that is `continued` has no end.
    """
    encoded = tokenizer(list(texts), return_special_tokens_mask=True, verbose=False)
    ids: Any = encoded["input_ids"]
    masks: Any = encoded["special_tokens_mask"]
    end: Any = tokenizer.eos_token_id
    return [
        _once(*_parts(each, mask), None if continued else end, continued) for each, mask in zip(ids, masks, strict=True)
    ]


def begin_already(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[bool]:
    """Return which texts begin with what the tokenizer puts before every text, such as its BOS."""
    if not texts or not tokenizer.num_special_tokens_to_add():
        return [False] * len(texts)
    beginnings = [text[:100] for text in texts]
    encoded = tokenizer(beginnings, return_special_tokens_mask=True, verbose=False)
    parts = map(_parts, encoded["input_ids"], encoded["special_tokens_mask"])  # pyright: ignore[reportArgumentType]
    return [bool(before) and inside[: len(before)] == before for before, inside, _ in parts]


def _parts(ids: list[int], special: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
    """Return (what the tokenizer put before, the text, what it put behind)."""
    before = next((index for index, added in enumerate(special) if not added), min(len(ids), 1))
    behind = next((index for index, added in enumerate(reversed(special)) if not added), max(len(ids) - 1, 0))
    return ids[:before], ids[before : len(ids) - behind], ids[len(ids) - behind :]


def _once(before: list[int], inside: list[int], behind: list[int], end: int | None, continued: bool) -> list[int]:
    if before and inside[: len(before)] == before:
        inside = inside[len(before) :]
    if continued:
        return before + inside
    if behind and inside[-len(behind) :] == behind:
        inside = inside[: -len(behind)]
    ended = behind or end is None or inside[-1:] == [end]
    return before + inside + (behind if ended else [end])  # pyright: ignore[reportReturnType]


# --- prompts -----------------------------------------------------------------------------------------------------


def scored_length(
    prompt: str | Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, options: Mapping[str, Any]
) -> int:
    """Return the tokens of a prompt as a reward model reads it, without the answer. Raises RefusedByTemplate.

    A stand-in for the answer, of one token, takes part in the rendering of messages.
    """
    answer: Any = "" if isinstance(prompt, str) else [ANY_ANSWER]
    return len(row_ids(prompt + answer, tokenizer, continued=False, options=options)) - len(answer)


def require_chat_template(tokenizer: PreTrainedTokenizerBase, *, source: str) -> None:
    """Raise InputError for a tokenizer without one."""
    if not tokenizer.chat_template:
        raise InputError(
            f"{source}: the rows are lists of messages, and the tokenizer {tokenizer.name_or_path or ''} has no chat "
            "template. Pass plain text, set --chat_template_path, or use an instruct model"
        )


def tokenize_prompts(
    prompts: Sequence[Any],
    tokenizer: PreTrainedTokenizerBase,
    *,
    source: str,
    first_row: int = 0,
    **settings: Any,
) -> list[list[int]]:
    """Return the ids of prompts that are all text or all messages. `settings` as in `token_ids`.

    Raises InputError for a prompt without tokens, and as `token_ids` does.
    """
    all_ids = token_ids(prompts, tokenizer, continued=True, source=source, first_row=first_row, **settings)
    if empty := [row for row, ids in enumerate(all_ids, start=first_row) if not ids]:
        raise InputError(
            f'{source}: column "prompt": no tokens in {list_rows(empty)} (rows count from 0). '
            "Every prompt needs at least one token"
        )
    return all_ids
