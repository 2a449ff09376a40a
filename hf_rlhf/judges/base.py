"""The common part of all judges: comparisons with the order swapped, and ratings from 1 to 5."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from hf_rlhf.judges.comparison import Comparison
from hf_rlhf.judges.questions import COMPARISON_QUESTION, RUBRIC, Question, text_or_file
from hf_rlhf.types import Prompt


class Judge(ABC):
    """A model that compares two completions of a prompt, or rates one.

    Args:
        name: under which reports name it.
        question: what a comparison asks; a text, or a .txt or .md file.
        rubric: what a rating asks, in the same forms.

    Attributes:
        counts: `asked` questions, and of them those `repeated` after an answer that could not be read, those
            `unreadable` both times, and those that `failed`; of these, those `lost` may be answered at another time.
        example: the last answer that could not be read, for messages.
        keep_errors: so many questions of a call may fail after all tries of a server, and have no answer then. One more
            ends the call.
    """

    def __init__(self, name: str, question: str | None = None, rubric: str | None = None):
        self.name = name
        self.question = text_or_file("question", COMPARISON_QUESTION if question is None else question)
        self.rubric = text_or_file("rubric", RUBRIC if rubric is None else rubric)
        self.counts: Counter[str] = Counter()
        self.example = ""
        self.keep_errors = 0

    @property
    @abstractmethod
    def cache_key(self) -> str | None:
        """Text that names everything an answer depends on besides the question; None if answers are random."""

    @abstractmethod
    def _prefer_first(self, questions: Sequence[Question], on_done: Callable[[int], None]) -> list[float | None]:
        """Return P(the completion shown first is better) for each question; None without a readable answer."""

    @abstractmethod
    def _rate(self, questions: Sequence[Question], on_done: Callable[[int], None]) -> list[float | None]:
        """Return a rating in [1, 5] for each question; None without a readable answer."""

    def compare(
        self,
        prompts: Sequence[Prompt],
        first: Sequence[Any],
        second: Sequence[Any],
        questions: Sequence[str] | None = None,
        on_done: Callable[[int], None] = lambda _: None,
    ) -> list[Comparison]:
        """Ask about each pair twice, the second time in the other order.

        Args:
            prompts: `B` of them, text or messages.
            first: a completion of each, by TRL's contract: text or messages.
            second: another completion of each.
            questions: what is asked about each pair; the judge's own question by default.
            on_done: called with the number of questions answered since the last call, of `2 * B`.
        """
        texts = [self.question] * len(prompts) if questions is None else questions
        rows = list(zip(texts, prompts, first, second, strict=True))
        asked = [Question(text, prompt, (a, b)) for text, prompt, a, b in rows]
        asked += [Question(text, prompt, (b, a)) for text, prompt, a, b in rows]
        answers = self._prefer_first(asked, on_done)
        swapped = (None if answer is None else 1 - answer for answer in answers[len(rows) :])
        return [Comparison(a, b) for a, b in zip(answers[: len(rows)], swapped, strict=True)]

    def rate(
        self, prompts: Sequence[Prompt], completions: Sequence[Any], on_done: Callable[[int], None] = lambda _: None
    ) -> list[float | None]:
        """Return a rating of each completion from 1 to 5 by the rubric; None where there is no readable answer."""
        rows = zip(prompts, completions, strict=True)
        return self._rate([Question(self.rubric, prompt, (completion,)) for prompt, completion in rows], on_done)
