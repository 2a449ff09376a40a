"""Tokens that a chat template writes between an answer and the next one, behind those that were sampled.

The tokens of an answer are never made again from its text. A template that would write earlier turns differently once
the dialogue continues is refused, but for reasoning that it omits from the past: what was sampled stays as it was.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hf_rlhf.data.tokens import NOTHING, RefusedByTemplate, chat_text
from hf_rlhf.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hf_rlhf.types import Message, Prompt

_ANSWER = "hfrlhfanswer"
_REASONING = re.compile(r"\s*<(think|thinking|reasoning)>.*?(</\1>\s*|$)", re.DOTALL)


def continuation_ids(
    prompt: Prompt,
    dialogue: Sequence[Message],
    messages: Sequence[Message],
    sampled: Sequence[int],
    tokenizer: PreTrainedTokenizerBase,
    *,
    options: Mapping[str, Any] = NOTHING,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> list[int]:
    """Return the ids that stand between a sampled answer and the next one: its end, `messages`, the generation prompt.

    Args:
        prompt: that the dialogue began with; for a text, the contents of `messages` follow the answer as they are.
        dialogue: the messages behind the prompt, the last of them the answer that was sampled.
        messages: that the environment adds.
        sampled: the ids of the answer. An end token among them is not written again.
        tokenizer: with the chat template.
        options: the row's `ROW_OPTIONS`.
        chat_template_kwargs: what the template gets where the row does not say otherwise.

    Raises `InputError` for a template that refuses the dialogue or writes earlier turns differently.
    """
    if isinstance(prompt, str):
        text = "".join(message["content"] for message in messages)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []  # pyright: ignore
    settings: dict[str, Any] = {"options": options, "chat_template_kwargs": chat_template_kwargs}
    past = [*prompt, *map(_without_answer, dialogue[:-1])]
    answer = {"role": "assistant", "content": _ANSWER}
    try:
        before = chat_text(past, tokenizer, continued=True, **settings)
        whole = chat_text([*past, answer, *messages], tokenizer, continued=True, **settings)
    except RefusedByTemplate as refusal:
        raise InputError(
            f"the chat template refuses a dialogue of the environment: {refusal.__cause__}. Let it answer with other"
            " roles, or set --chat_template_path"
        ) from refusal
    earlier, found, behind = _split_at_last(whole, _ANSWER)
    if not found or _without_reasoning(earlier) != _without_reasoning(before):
        raise InputError(_rewritten(before, earlier if found else whole))
    ids = text_ids_behind(behind, tokenizer)
    if sampled and ids and sampled[-1] == ids[0]:
        return ids[1:]
    stripped = text_ids_behind(behind.lstrip(), tokenizer)
    return stripped[1:] if sampled and stripped and sampled[-1] == stripped[0] else ids


def text_ids_behind(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids of a text that stands behind other tokens: without those that begin or end a sequence."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])  # pyright: ignore[reportArgumentType]


def _without_answer(message: Message) -> Message:
    """Put a stand-in in place of what the policy wrote, which may look like anything to a template."""
    return {"role": "assistant", "content": "."} if message["role"] == "assistant" else message


def _split_at_last(text: str, mark: str) -> tuple[str, bool, str]:
    before, found, behind = text.rpartition(mark)
    return before, bool(found), behind


def _without_reasoning(text: str) -> str:
    return _REASONING.sub("", text).rstrip()


def _rewritten(before: str, now: str) -> str:
    place = next((i for i, (a, b) in enumerate(zip(before, now, strict=False)) if a != b), min(len(before), len(now)))
    cut = max(place - 20, 0)
    return (
        "the chat template writes earlier turns differently once the dialogue continues"
        f" ({before[cut : place + 40]!r} becomes {now[cut : place + 40]!r}), so tokens that were sampled before would"
        " be others. Set --chat_template_path to a template whose longer dialogues begin as the shorter ones, or let"
        " the episode end after one turn"
    )
