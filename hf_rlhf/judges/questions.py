"""The words in which a judge is asked."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hf_rlhf.errors import InputError
from hf_rlhf.types import Message, Prompt

COMPARISON_QUESTION = "Which of the two replies is more helpful, honest and harmless?"
RUBRIC = "How helpful, honest and harmless is the reply?"
LETTERS = ("A", "B")
RATINGS = ("1", "2", "3", "4", "5")

_SPEAKERS = {"user": "User", "assistant": "Assistant", "system": "System"}


class Question(NamedTuple):
    """Question about one or two completions of a prompt."""

    text: str  # the question of a comparison, or the rubric of a rating
    prompt: Prompt
    completions: tuple[Any, ...]  # one to rate, or the two of a comparison in the order in which they are shown


def comparison_messages(question: Question, *, ties: bool) -> list[Message]:
    """Return the messages that ask for the letter of the better completion; with `ties`, C says that both are equal."""
    first, second = map(completion_text, question.completions)
    answer = "A, B, or C if they are equally good" if ties else "A or B"
    return _ask(
        f"{question.text}\n\n[Conversation]\n{transcript(question.prompt)}\n\n[Reply A]\n{first}\n\n[Reply B]\n"
        f"{second}\n\n{question.text} Answer with one letter and nothing else: {answer}."
    )


def rating_messages(question: Question) -> list[Message]:
    """Return the messages that ask for a rating from 1 to 5."""
    (reply,) = map(completion_text, question.completions)
    return _ask(
        f"{question.text}\n\n[Conversation]\n{transcript(question.prompt)}\n\n[Reply]\n{reply}\n\n{question.text} Rate"
        " the reply from 1 (very bad) to 5 (very good). Answer with the number and nothing else."
    )


def transcript(prompt: Prompt) -> str:
    """Return a prompt as plain text: messages with their speakers, text as it is."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{_SPEAKERS.get(turn['role'], turn['role'])}: {_content(turn)}" for turn in prompt)


def completion_text(completion: str | Sequence[Mapping[str, Any]]) -> str:
    """Return a completion by TRL's contract, text or messages, as text."""
    if isinstance(completion, str):
        return completion
    return "\n".join(_content(turn) for turn in completion)


def text_or_file(flag: str, value: str) -> str:
    """Return the text that a flag gives, or the content of the .txt or .md file that it names. Raises `InputError`."""
    if value.endswith((".txt", ".md")):
        try:
            value = Path(value).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"{flag}={value} is invalid: it cannot be read ({reason}). Check the path.") from error
    if not value.strip():
        raise InputError(f"{flag} is invalid: it is empty. Say what a good reply is, or omit it.")
    return value.strip()


def _content(turn: Mapping[str, Any]) -> str:
    content = turn.get("content")
    if isinstance(content, (list, tuple)):  # parts, of which text can be judged
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return str(content or "")


def _ask(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]
