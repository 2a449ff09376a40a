"""The assistant's turn as a chat template writes it: what closes it, and what a generation prompt puts into it."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

from hf_rlhf.data.json_columns import ROW_OPTIONS
from hf_rlhf.data.tokens import NOTHING, RefusedByTemplate, chat_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ANSWER, _NEXT = "hfrlhfanswer", "hfrlhfnext"  # found again in what a template writes, whatever it trims
_EMPTY_BLOCK = re.compile(r"\s*<([\w-]+)>\s*</\1>\s*")  # <think></think>: there is nothing to think about
_OPEN_TAG = re.compile(r"<[A-Za-z][\w-]*>\s*$|\[[A-Z][A-Z_]*\]\s*$")
_MOST_KEYS, _MOST_ENDINGS = 256, 8
_found: WeakKeyDictionary[Any, dict[str, deque[Any]]] = WeakKeyDictionary()  # by tokenizer, then see `_found_for`


def _found_for(tokenizer: PreTrainedTokenizerBase, *settings: Any) -> deque[Any]:
    """Return what was read off the chat template under these settings: a few values, which the caller adds to."""
    known = _found.setdefault(tokenizer, {})
    key = repr((tokenizer.chat_template, len(tokenizer), *settings))
    if key not in known and len(known) >= _MOST_KEYS:
        known.clear()
    return known.setdefault(key, deque(maxlen=_MOST_ENDINGS))


class TurnEnd(NamedTuple):
    """The text and tokens that a chat template writes behind an answer."""

    text: str  # without the white space around it
    # The first token of its own in it, at which an answer ends; none where it is spelled in pieces
    tokens: tuple[int, ...]
    trained: bool = True  # whether it belongs to the answer; otherwise it opens the turn behind


def end_of_turn(
    tokenizer: PreTrainedTokenizerBase,
    row: Mapping[str, Any] = NOTHING,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> TurnEnd | None:
    """Return what the chat template closes an answer with, such as `<|im_end|>` of ChatML.

    It is read off a rendered dialogue, at its last turn; of a template that writes nothing there, it is the token that
    opens the turn behind (`<|user|>` of GLM). None without a chat template, and where no end can be told.

    The template gets the `tools` and `chat_template_kwargs` of `row` and those of the run, as in `prefill`.
    """
    settings = {"options": {name: row.get(name) for name in ROW_OPTIONS}, "chat_template_kwargs": chat_template_kwargs}
    found = _found_for(tokenizer, "end", settings)
    if not found:
        found.append(_read_end(tokenizer, **settings))
    return found[0]


def _read_end(tokenizer: PreTrainedTokenizerBase, **settings: Any) -> TurnEnd | None:
    question, answer, further = (
        {"role": role, "content": text} for role, text in (("user", "?"), ("assistant", _ANSWER), ("user", _NEXT))
    )
    last = _written([question, answer], tokenizer, **settings).partition(_ANSWER)[2].strip()
    behind = (
        _written([question, answer, further], tokenizer, **settings).partition(_ANSWER)[2].partition(_NEXT)[0].strip()
    )
    if last:
        tokens = _own_tokens(last, tokenizer)
        turn_tokens = set(_own_tokens(behind, tokenizer))  # the last may have the end of the whole dialogue besides
        return TurnEnd(last, tuple(token for token in tokens if token in turn_tokens) or tokens)
    tokens = _own_tokens(behind, tokenizer)[:1]
    return TurnEnd(str(tokenizer.convert_ids_to_tokens(tokens[0])), tokens, trained=False) if tokens else None


def _written(dialogue: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, **settings: Any) -> str:
    """Render the dialogue; return an empty text where the template refuses it, or does not write the answer."""
    if not tokenizer.chat_template:
        return ""
    in_parts = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in dialogue]
    system = {"role": "system", "content": "?"}
    for form in (dialogue, [system, *dialogue], in_parts):
        try:
            text = chat_text(form, tokenizer, continued=False, **settings)
        except RefusedByTemplate:
            continue
        if _ANSWER in text:
            return text
    return ""


def _own_tokens(text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Find the added tokens in a text: special ones, and others that no merge can break, but for white space."""
    ids: Any = tokenizer(text, add_special_tokens=False)["input_ids"]
    added = tokenizer.added_tokens_decoder
    known = (token for token in ids if token in added and token != tokenizer.unk_token_id)
    return tuple(token for token in known if added[token].content.strip())


def prefill(
    row: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> str:
    """Return the text that the generation prompt puts at the beginning of the answer, such as `<think>` and a newline.

    It is what the generation prompt has beyond the header of an answer, without special tokens. Empty for a prompt of
    plain text, and for what is no part of the answer: an empty block (`<think></think>`, which switches thinking off),
    or what the template also writes before an answer that is given to it.

    It is read off the template once for all rows of the same options and roles whose ids end with the same generation
    prompt.

    Args:
        row: `prompt`, which the template takes, and its `prompt_ids`; `tools` and `chat_template_kwargs`, where it has
            them, reach the template.
        tokenizer: with the chat template that the prompt was rendered by.
        chat_template_kwargs: what the template gets where the row does not say otherwise.
    """
    prompt = row["prompt"]
    if isinstance(prompt, str):
        return ""
    ids = list(row["prompt_ids"])
    roles = [message.get("role") for message in prompt]
    found = _found_for(tokenizer, [row.get(name) for name in ROW_OPTIONS], chat_template_kwargs, roles)
    for ending, begun in tuple(found):
        if ids[-len(ending) :] == ending:
            return begun
    text, begun = _read_prefill(prompt, tokenizer, options=row, chat_template_kwargs=chat_template_kwargs)
    length: int = len(tokenizer(text, add_special_tokens=False)["input_ids"])  # pyright: ignore[reportArgumentType]
    found.append((ids[-max(length, 1) :], begun))
    return begun


def _read_prefill(
    prompt: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, **settings: Any
) -> tuple[str, str]:
    """Return the generation prompt (the whole where it cannot be told apart) and what of it belongs to the answer."""
    opened = chat_text(prompt, tokenizer, continued=True, **settings)
    closed = _rendered(prompt, tokenizer, **settings)
    added = _beyond(closed, opened)
    answer, further = {"role": "assistant", "content": _ANSWER}, {"role": "user", "content": _NEXT}
    dialogues = [*prompt, answer], [*prompt, answer, further]
    texts = [text for dialogue in dialogues if _ANSWER in (text := _rendered(dialogue, tokenizer, **settings))]
    headers = [text.partition(_ANSWER)[0] for text in texts]
    begun = next((opened[len(header) :] for header in headers if opened.startswith(header)), None)
    if begun is None:  # a template that writes a block of its own before every answer (`<think></think>`)
        begun = _opened_tag(added, [_beyond(closed, header) or header for header in headers])
    ending = added if closed and opened.startswith(closed) else opened
    if not begun.strip():
        return ending, ""
    for token in tokenizer.added_tokens_decoder.values():
        begun = begun.replace(token.content, "") if token.special else begun
    return ending, "" if not begun.strip() or _EMPTY_BLOCK.fullmatch(begun) else begun


def _rendered(dialogue: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, **settings: Any) -> str:
    """Render the dialogue without a generation prompt; return an empty text where the template refuses it."""
    try:
        return chat_text(dialogue, tokenizer, continued=False, **settings)
    except RefusedByTemplate:
        return ""


def _beyond(closed: str, text: str) -> str:
    """Return the text behind the rendered prompt; empty where it does not begin with the prompt."""
    return text[len(closed) :] if closed and text.startswith(closed) else ""


def _opened_tag(added: str, headers: Sequence[str]) -> str:
    """Return the tag at the end of a generation prompt, unless it marks the role: it is all of it, or holds answers."""
    tag = _OPEN_TAG.search(added)
    if not tag or not headers or not added[: tag.start()].strip():
        return ""
    mark = tag.group().strip()
    closing = f"{mark[0]}/{mark[1:]}"
    return "" if any(header.count(mark) > header.count(closing) for header in headers) else tag.group()
