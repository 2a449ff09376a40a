"""A judge behind any OpenAI-compatible server."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from hf_rlhf.endpoints.client import EndpointError, Post
from hf_rlhf.errors import InputError
from hf_rlhf.judges.base import Judge
from hf_rlhf.judges.chat import ChatEndpoint
from hf_rlhf.judges.questions import Question, comparison_messages, rating_messages
from hf_rlhf.types import Message

_LETTER = re.compile(r"""[\s"'*`(\[]*([ABC])[\s"'*`)\].]*""")
_RATING = re.compile(r"""[\s"'*`(\[]*([1-5])(?:\.0|\s*/\s*5)?[\s"'*`)\].]*""")
_PREFERENCE = {"A": 1.0, "B": 0.0, "C": 0.5}
_AGAIN = "Answer with one letter alone: A, B or C.", "Answer with one number alone: 1, 2, 3, 4 or 5."


class _Read(NamedTuple):
    """One answer as it was read."""

    value: float | None
    repeated: bool
    text: str


class EndpointJudge(Judge):
    """A judge that writes its answer: a letter, or a number from 1 to 5, and nothing else.

    What cannot be read strictly is asked for once more, and then counts as no answer.

    Args:
        model: by the server's name.
        url: of the server, see `ChatEndpoint`.
        question: see `Judge`.
        rubric: see `Judge`.
        temperature: 0 takes the most likely answer; above, answers are random and have no `cache_key`.
        max_tokens: of an answer. A model that thinks before it answers needs hundreds.
        request: see `ChatEndpoint`.
        connection: see `ChatEndpoint`.
    """

    def __init__(
        self,
        model: str,
        url: str,
        *,
        question: str | None = None,
        rubric: str | None = None,
        temperature: float = 0.0,
        max_tokens: int = 16,
        request: str | Mapping[str, Any] | None = None,
        **connection: Any,
    ):
        super().__init__(model, question, rubric)
        self.chat = ChatEndpoint(model, url, request=request, **connection)
        rules = {
            "temperature": (temperature >= 0, temperature, "0 or above"),
            "max_tokens": (max_tokens >= 1, max_tokens, "at least 1"),
        }
        for flag, (holds, value, rule) in rules.items():
            if not holds:
                raise InputError(f"{flag}={value} is invalid: it must be {rule}.")
        self.temperature, self.max_tokens = temperature, max_tokens

    @property
    def cache_key(self) -> str | None:
        """Text that names model, address, wording and request; None above temperature 0."""
        if self.chat.more.get("temperature", self.temperature) != 0:
            return None
        parts = [self.chat.model, self.chat.url, self.question, self.rubric, self.max_tokens, self.chat.more]
        return json.dumps(["EndpointJudge", *parts], sort_keys=True)

    def _prefer_first(self, questions: Sequence[Question], on_done: Callable[[int], None]) -> list[float | None]:
        asked = [comparison_messages(question, ties=True) for question in questions]
        return self._answers(asked, _read_letter, _AGAIN[0], on_done)

    def _rate(self, questions: Sequence[Question], on_done: Callable[[int], None]) -> list[float | None]:
        return self._answers(list(map(rating_messages, questions)), _read_rating, _AGAIN[1], on_done)

    def _answers(
        self,
        asked: Sequence[list[Message]],
        read: Callable[[str], float | None],
        again: str,
        on_done: Callable[[int], None],
    ) -> list[float | None]:
        def call(messages: list[Message], post: Post) -> _Read:
            sampling = {"temperature": self.temperature, "max_tokens": self.max_tokens}
            text = self.chat.ask(post, messages, **sampling).text
            value = read(text)
            if value is not None:
                return _Read(value, False, text)
            more: list[Message] = [{"role": "assistant", "content": text}, {"role": "user", "content": again}]
            text = self.chat.ask(post, [*messages, *more], **sampling).text
            return _Read(read(text), True, text)

        found = self.chat.endpoint.call_all(call, asked, keep_errors=self.keep_errors, on_done=on_done)
        answers = [each for each in found if not isinstance(each, EndpointError)]
        unreadable = [each for each in answers if each.value is None]
        self.example = unreadable[-1].text if unreadable else self.example
        self.counts.update(
            asked=len(found),
            repeated=sum(each.repeated for each in answers),
            unreadable=len(unreadable),
            failed=len(found) - len(answers),
            lost=sum(each.again for each in found if isinstance(each, EndpointError)),
        )
        return [None if isinstance(each, EndpointError) else each.value for each in found]


def _read_letter(text: str) -> float | None:
    found = _LETTER.fullmatch(text)
    return _PREFERENCE[found[1]] if found else None


def _read_rating(text: str) -> float | None:
    found = _RATING.fullmatch(text)
    return float(found[1]) if found else None
