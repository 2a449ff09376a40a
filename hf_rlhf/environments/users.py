"""Simulated users of a dialogue: by lines, by a function, or by a model."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from hf_rlhf.endpoints.client import EndpointError
from hf_rlhf.environments.base import Turn
from hf_rlhf.errors import InputError
from hf_rlhf.types import Message
from hf_rlhf.writers import Writer

_PLAY = (
    "You play the user who talks with an assistant. Write the user's next message and nothing else: no quotes, no name"
    " in front, never the assistant's part."
)
_END = "When there is nothing more to say, write {mark} alone."


@dataclass
class Scene:
    """A dialogue in which the user is to speak.

    Attributes:
        row: of the dataset.
        messages: the prompt and all that was said behind it; the last message is the policy's.
        turn: completions of the policy so far.
        rng: the episode's chance.
    """

    row: Mapping[str, Any]
    messages: list[Message]
    turn: int = 0
    rng: random.Random = field(default_factory=random.Random)


Said = str | Turn | None
"""A user's message, None where it ends the dialogue, or a `Turn` that may pay."""


class User(Protocol):
    """The user of many dialogues."""

    def reply(self, scenes: Sequence[Scene]) -> Sequence[Said]:
        """Return what the user says in each scene. Reply b depends on `scenes[b]` alone."""
        ...


class ScriptedUser:
    """A user who says prepared lines, whatever is answered, and then ends the dialogue.

    Args:
        lines: for every row.
        column: of the dataset with a list of lines for its row, instead of `lines`.
    """

    def __init__(self, lines: Sequence[str] | None = None, *, column: str | None = None):
        if (lines is None) == (column is None):
            raise InputError("lines is invalid: a script has lines or a column. Give one of them.")
        if isinstance(lines, str):
            raise InputError(f"lines={lines!r} is invalid: it is one text. Give a list of lines.")
        self.lines, self.column = lines, column
        self.required_columns = () if column is None else (column,)

    def reply(self, scenes: Sequence[Scene]) -> list[Said]:
        """Return the next line of each scene. Raises `InputError` for a row without a list of lines."""
        return [self._line(scene) for scene in scenes]

    def _line(self, scene: Scene) -> Said:
        lines = self.lines if self.column is None else scene.row.get(self.column)
        if not isinstance(lines, Sequence) or isinstance(lines, str):
            raise InputError(
                f"column={self.column} is invalid: a row has {lines!r} there, which is no list of lines. Give each row"
                " a list, which may be empty."
            )
        return lines[scene.turn - 1] if scene.turn <= len(lines) else None


class FunctionUser:
    """A user that a function plays.

    Args:
        function: takes `messages`, `row` and `rng`; returns what is said, None to end the dialogue, or a `Turn`, which
            can pay a reward for a goal that was reached.
    """

    def __init__(self, function: Callable[[list[Message], Mapping[str, Any], random.Random], Said]):
        self.function = function

    def reply(self, scenes: Sequence[Scene]) -> list[Said]:
        """Call the function for each scene."""
        return [self.function(scene.messages, scene.row, scene.rng) for scene in scenes]


class ModelUser:
    """A user that a language model plays: one loaded here, or one behind an OpenAI-compatible server.

    All live dialogues are written together. The model reads an instruction with persona and goal, and the dialogue as a
    transcript. A column `persona` or `goal` of a row comes before the text given here.

    Args:
        writer: `ModelWriter.load(...)` or `EndpointWriter(...)` of `hf_rlhf.writers`.
        persona: who the user is.
        goal: what the user wants.
        max_tokens: of a message.
        end_mark: what the model writes to end the dialogue.
    """

    def __init__(
        self,
        writer: Writer,
        *,
        persona: str | None = None,
        goal: str | None = None,
        max_tokens: int = 64,
        end_mark: str = "[END]",
    ):
        if max_tokens < 1:
            raise InputError(f"max_tokens={max_tokens} is invalid: it must be at least 1.")
        if not end_mark.strip():
            raise InputError("end_mark is invalid: it is empty, and so is part of every message. Give a word.")
        self.writer, self.persona, self.goal = writer, persona, goal
        self.max_tokens, self.end_mark = max_tokens, end_mark

    def reply(self, scenes: Sequence[Scene]) -> list[Said]:
        """Let the model write all replies at once.

        Raises what the writer raises, and `EndpointError` where a server gave no answer.
        """
        seeds = [scene.rng.getrandbits(63) for scene in scenes]
        written = self.writer.write([self.asked(scene) for scene in scenes], seeds, self.max_tokens)
        if lost := sum(each.again for each in written):
            raise EndpointError(f"{self.writer.name} gave no answer in {lost} of {len(scenes)} dialogues")
        return [self._said(each.text) for each in written]

    def asked(self, scene: Scene) -> list[Message]:
        """Return what the model is asked: one message, since some chat templates take no system message."""
        told = [_PLAY, _END.format(mark=self.end_mark)]
        persona, goal = scene.row.get("persona") or self.persona, scene.row.get("goal") or self.goal
        told += [f"The user is: {persona}"] if persona else []
        told += [f"The user wants: {goal}"] if goal else []
        lines = [f"{_NAMES[each['role']]}: {each['content']}" for each in scene.messages if each["role"] in _NAMES]
        parts = [" ".join(told), "\n".join(lines), "The user's next message:"]
        return [{"role": "user", "content": "\n\n".join(parts)}]

    def _said(self, text: str) -> Said:
        before, found, _ = text.partition(self.end_mark)
        return Turn(_as_messages(before.strip()), terminated=True) if found else text or Turn(terminated=True)


_NAMES = {"user": "User", "assistant": "Assistant"}


def _as_messages(text: str) -> tuple[Message, ...]:
    return ({"role": "user", "content": text},) if text else ()
