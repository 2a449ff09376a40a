"""Whole dialogues, split into a prompt and what answers it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from hf_rlhf.types import Message, Prompt

HH_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):(?=\s|$)")
HH_ROLES = {"Human": "user", "Assistant": "assistant"}


class Pair(NamedTuple):
    """One row: `prompt` is None for implicit-prompt text."""

    prompt: Prompt | None
    chosen: Prompt
    rejected: Prompt


class MalformedDialogue(ValueError):
    """A whole dialogue cannot be split into prompt and answers; the message is the reason that is counted."""


def with_question(dialogue: Sequence[Message], prompt: str) -> list[Message]:
    """Return the dialogue with the prompt asked in it: dialogues may hold it already, or begin after it."""
    start = next((row for row, message in enumerate(dialogue) if message["role"] != "system"), len(dialogue))
    begins_after = start < len(dialogue) and dialogue[start]["role"] == "assistant"
    asked: list[Message] = [{"role": "user", "content": prompt}] if begins_after else []
    return [*dialogue[:start], *asked, *dialogue[start:]]


def asks(messages: Any, prompt: str) -> bool:
    """Return whether a message of the user says what the prompt says, whitespace aside.

    Values of any kind are taken.
    """
    found = [each for each in messages if isinstance(each, Mapping)] if isinstance(messages, list) else []
    asked = [message.get("content") for message in found if message.get("role") == "user"]
    return any(isinstance(content, str) and content.split() == prompt.split() for content in asked)


def require_question(messages: Any, prompt: str) -> None:
    """Raise MalformedDialogue unless one of the messages is the user's and says what the prompt says."""
    if not asks(messages, prompt):
        raise MalformedDialogue('the text of "prompt" is no message of the user before the answers')


def before_answer(dialogue: Sequence[Message], prompt: str | None = None) -> list[Message]:
    """Return the messages before the answer that a dialogue ends in, all where it ends in none.

    `prompt` is the text beside the dialogue, if there is one. Raises MalformedDialogue where nothing is before the
    answer, and where the prompt is not asked there.
    """
    messages = with_question(dialogue, prompt) if isinstance(prompt, str) else list(dialogue)
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    if all(message["role"] == "system" for message in messages):
        raise MalformedDialogue("no message before the answer")
    if isinstance(prompt, str):
        require_question(messages, prompt)
    return messages


def parse_hh(text: str) -> list[Message]:
    r"""Parse the messages of "\n\nHuman: ...\n\nAssistant: ..."; turns of one speaker in a row are joined into one.

    Raises MalformedDialogue when the text does not start with a Human turn.
    """
    before, *parts = HH_TURN.split(text.lstrip())
    if before or not parts or parts[0] != "Human":
        raise MalformedDialogue("does not start with a Human turn")
    messages: list[Message] = []
    for speaker, content in zip(parts[::2], parts[1::2], strict=True):
        role, content = HH_ROLES[speaker], content.strip()
        if messages and messages[-1]["role"] == role:
            content = f"{messages.pop()['content']}\n\n{content}".strip()
        messages.append({"role": role, "content": content})
    return messages


def split_dialogues(chosen: Sequence[Message], rejected: Sequence[Message]) -> Pair:
    """Return the common leading messages as the prompt, what follows them as the answers.

    Raises MalformedDialogue unless both end in an answer that is not empty and both part after a message of the user.
    """
    for dialogue in (chosen, rejected):
        if dialogue[-1]["role"] != "assistant":
            raise MalformedDialogue("does not end in an assistant turn")
        if is_empty(dialogue[-1]):
            raise MalformedDialogue("empty last answer")
    common = 0
    last = min(len(chosen), len(rejected)) - 1  # of equal dialogues, the last message is the answer
    while common < last and chosen[common] == rejected[common]:
        common += 1
    prompt = list(chosen[:common])
    if not prompt:
        raise MalformedDialogue("no common prompt")
    if prompt[-1]["role"] == "assistant" or not chosen[common]["role"] == rejected[common]["role"] == "assistant":
        raise MalformedDialogue("the dialogues part in a turn that is not the assistant's")
    return Pair(prompt, list(chosen[common:]), list(rejected[common:]))


def is_empty(message: Mapping[str, Any]) -> bool:
    """Return whether a message has no text and no tool call."""
    return not (message.get("content") or "").strip() and not message.get("tool_calls")
