"""The assistant's turn as a chat template writes it: what closes it, and what a generation prompt puts into it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_rlhf.data.tokens import RefusedByTemplate, chat_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ANSWER, _NEXT = "hfrlhfanswer", "hfrlhfnext"  # found again in what a template writes, whatever it trims
_EMPTY_BLOCK = re.compile(r"\s*<([\w-]+)>\s*</\1>\s*")  # <think></think>: there is nothing to think about
_OPEN_TAG = re.compile(r"<[A-Za-z][\w-]*>\s*$|\[[A-Z][A-Z_]*\]\s*$")


class TurnEnd(NamedTuple):
    """What a chat template writes behind an answer."""

    text: str  # without the white space around it
    tokens: tuple[int, ...]  # the tokens of their own in it, in order; none where it is spelled in pieces
    trained: bool = True  # whether it belongs to the answer; otherwise it opens the turn behind


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> TurnEnd | None:
    """Return what the chat template closes an answer with, such as `<|im_end|>` of ChatML.

    It is read off a rendered dialogue, at its last turn; of a template that writes nothing there, it is the token that
    opens the turn behind (`<|user|>` of GLM). None without a chat template, and where no end can be told.
    """
    question, answer, further = (
        {"role": role, "content": text} for role, text in (("user", "?"), ("assistant", _ANSWER), ("user", _NEXT))
    )
    last = _written([question, answer], tokenizer).partition(_ANSWER)[2].strip()
    if last:
        return TurnEnd(last, _own_tokens(last, tokenizer))
    behind = _written([question, answer, further], tokenizer).partition(_ANSWER)[2].partition(_NEXT)[0].strip()
    tokens = _own_tokens(behind, tokenizer)[:1]
    return TurnEnd(str(tokenizer.convert_ids_to_tokens(tokens[0])), tokens, trained=False) if tokens else None


def _written(dialogue: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> str:
    """The dialogue through the template; empty for one that takes it in no form, or does not write the answer."""
    if not tokenizer.chat_template:
        return ""
    in_parts = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in dialogue]
    system = {"role": "system", "content": "?"}
    for form in (dialogue, [system, *dialogue], in_parts):
        try:
            text = chat_text(form, tokenizer, continued=False)
        except RefusedByTemplate:
            continue
        if _ANSWER in text:
            return text
    return ""


def _own_tokens(text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The added tokens in a text: special ones, and others that no merge can break, but for white space."""
    ids: Any = tokenizer(text, add_special_tokens=False)["input_ids"]
    added = tokenizer.added_tokens_decoder
    known = (token for token in ids if token in added and token != tokenizer.unk_token_id)
    return tuple(token for token in known if added[token].content.strip())


def prefill(
    prompt: Sequence[Mapping[str, Any]] | str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    options: Mapping[str, Any] = MappingProxyType({}),
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> str:
    """Return the text that the generation prompt puts at the beginning of the answer, such as `<think>` and a newline.

    It is what the generation prompt has beyond the header of an answer, without special tokens. Empty for a prompt of
    plain text, and for what is no part of the answer: an empty block (`<think></think>`, which switches thinking off),
    or what the template also writes before an answer that is given to it.

    Args:
        prompt: the row's prompt, which the template takes.
        tokenizer: with the chat template that the prompt was rendered by.
        options: the row's columns, of which `tools` and `chat_template_kwargs` reach the template.
        chat_template_kwargs: what the template gets where the row does not say otherwise.
    """
    if isinstance(prompt, str):
        return ""
    settings: dict[str, Any] = {"options": options, "chat_template_kwargs": chat_template_kwargs}
    opened = chat_text(prompt, tokenizer, continued=True, **settings)
    closed = _rendered(prompt, tokenizer, **settings)
    answer, further = {"role": "assistant", "content": _ANSWER}, {"role": "user", "content": _NEXT}
    dialogues = [*prompt, answer], [*prompt, answer, further]
    texts = [text for dialogue in dialogues if _ANSWER in (text := _rendered(dialogue, tokenizer, **settings))]
    headers = [text.partition(_ANSWER)[0] for text in texts]
    begun = next((opened[len(header) :] for header in headers if opened.startswith(header)), None)
    if begun is None:  # a template that writes a block of its own before every answer (`<think></think>`)
        begun = _opened_tag(_beyond(closed, opened), [_beyond(closed, header) or header for header in headers])
    if not begun.strip():
        return ""
    for token in tokenizer.added_tokens_decoder.values():
        begun = begun.replace(token.content, "") if token.special else begun
    return "" if not begun.strip() or _EMPTY_BLOCK.fullmatch(begun) else begun


def _rendered(dialogue: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, **settings: Any) -> str:
    """The dialogue through the template, without a generation prompt; empty for one that the template refuses."""
    try:
        return chat_text(dialogue, tokenizer, continued=False, **settings)
    except RefusedByTemplate:
        return ""


def _beyond(closed: str, text: str) -> str:
    """The text behind the rendered prompt; empty where it does not begin with the prompt."""
    return text[len(closed) :] if closed and text.startswith(closed) else ""


def _opened_tag(added: str, headers: Sequence[str]) -> str:
    """The tag at the end of a generation prompt, unless it marks the role: it is all of it, or answers stand in it."""
    tag = _OPEN_TAG.search(added)
    if not tag or not headers or not added[: tag.start()].strip():
        return ""
    mark = tag.group().strip()
    closing = f"{mark[0]}/{mark[1:]}"
    return "" if any(header.count(mark) > header.count(closing) for header in headers) else tag.group()
