"""Texts inside of prompts and answers, which are text or messages."""

import re
from collections.abc import Sequence
from typing import Any


def text_of(value: str | Sequence[Any]) -> str:
    """Return the text of an answer or a prompt: of messages, their contents one after the other."""
    return value if isinstance(value, str) else "\n\n".join(map(_content, value))


def question_of(prompt: str | Sequence[Any]) -> str:
    """Return the text that the answer replies to: the last message of the user, or a prompt that is text."""
    if isinstance(prompt, str):
        return prompt.strip()
    asked = [message for message in prompt if message.get("role") == "user"]
    return _content(asked[-1]).strip() if asked else ""


def with_text(answer: str | Sequence[Any], text: str) -> Any:
    """Return the answer in the same form with another text: of messages, the last one has it."""
    if isinstance(answer, str):
        return answer[: len(answer) - len(answer.lstrip())] + text
    return [*answer[:-1], {**answer[-1], "content": text}]


def last_text(answer: str | Sequence[Any]) -> str:
    """Return the text that `with_text` replaces."""
    return answer.strip() if isinstance(answer, str) else _content(answer[-1]).strip()


def words_of(text: str) -> list[str]:
    """Return the words, numbers and signs of a text in lower case."""
    return re.findall(r"[^\W\d_]+|\d+|[^\w\s]", text.lower())


def _content(message: Any) -> str:
    content = message.get("content")
    if isinstance(content, (list, tuple)):  # parts, as of a message with a picture
        return " ".join(str(part.get("text") or "") for part in content)
    return "" if content is None else str(content)
