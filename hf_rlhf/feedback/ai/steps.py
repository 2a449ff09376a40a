"""The steps of AI feedback: sample, criticize, revise, compare (Bai et al. 2022, arXiv 2212.08073).

Each answer has a key in the journal, such as `revision/7/0`, and depends on (seed, prompt, number) alone, so a run that
resumes gives the same files.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from hf_rlhf.feedback.ai.journal import Journal
from hf_rlhf.feedback.ai.principles import Principle
from hf_rlhf.judges.base import Judge
from hf_rlhf.judges.comparison import Comparison
from hf_rlhf.progress import progress_of
from hf_rlhf.rollout.sampling import row_seed
from hf_rlhf.types import Message
from hf_rlhf.writers import NOTHING, Writer, Written


@dataclass(frozen=True, slots=True)
class Revised:
    """A reply after its last revision."""

    row: int
    original: Written
    critique: str
    revision: Written
    principle: Principle


@dataclass(frozen=True, slots=True)
class Judged:
    """Two replies to a prompt, and what the judge said about them."""

    row: int
    first: str
    second: str
    principle: Principle
    comparison: Comparison


@dataclass
class FeedbackSteps:
    """The steps over all prompts, each in parts whose answers are in the journal before the next part is asked.

    Args:
        prompts: conversations that wait for a reply.
        principles: one is drawn for each revision and each comparison, by `seed`.
        writer: of replies, critiques and revisions.
        judge: of comparisons.
        journal: the answers so far.
        num_completions: replies to each prompt; every two of them are compared.
        num_revisions: of the first reply to each prompt.
        max_completion_length: tokens of a reply and of a revision.
        max_critique_length: tokens of a critique.
        part_size: dialogues, or pairs, of a part.
        seed: of all draws.
        max_failed_requests: so many requests to servers may fail after all tries; what they were to give stays empty.
    """

    prompts: Sequence[list[Message]]
    principles: Sequence[Principle]
    writer: Writer
    judge: Judge
    journal: Journal
    num_completions: int = 2
    num_revisions: int = 1
    max_completion_length: int = 128
    max_critique_length: int = 96
    part_size: int = 16
    seed: int = 0
    max_failed_requests: int = 0

    def run(self) -> tuple[list[Revised], list[Judged]]:
        """Take all steps. Raises what the writer and the judge raise; what they answered before that is kept."""
        rows = range(len(self.prompts))
        keys = [f"completion/{row}/{number}" for row in rows for number in range(self.num_completions)]
        self._write("completions", keys, self._prompt_of, self.max_completion_length)
        for number in range(self.num_revisions):
            keys = [f"critique/{row}/{number}" for row in rows]
            self._write("critiques", keys, self._critique_request, self.max_critique_length)
            keys = [f"revision/{row}/{number}" for row in rows]
            self._write("revisions", keys, self._revision_request, self.max_completion_length)
        self._compare()
        return list(self._revised()), list(self._judged())

    def principle_of(self, purpose: str, row: int, number: int) -> Principle:
        """Return the principle that is drawn for a revision or a comparison."""
        return random.Random(row_seed(self.seed, "principle", purpose, row, number)).choice(self.principles)

    @property
    def identical_pairs(self) -> int:
        """Pairs of replies that are equal or empty, about which the judge is not asked."""
        pairs = len(self.prompts) * self.num_completions * (self.num_completions - 1) // 2
        return pairs - len(list(self._pairs()))

    # --- what is asked ---

    def _prompt_of(self, row: int, number: int) -> list[Message]:
        return list(self.prompts[row])

    def _critique_request(self, row: int, number: int) -> list[Message] | None:
        principle, reply = self.principle_of("revision", row, number), self._before_revision(row, number)
        return [*self.prompts[row], _assistant(reply), _user(principle.critique)] if reply else None

    def _revision_request(self, row: int, number: int) -> list[Message] | None:
        asked, critique = self._critique_request(row, number), self._text(f"critique/{row}/{number}").text
        if asked is None or not critique:
            return None
        return [*asked, _assistant(critique), _user(self.principle_of("revision", row, number).revision)]

    def _before_revision(self, row: int, number: int) -> str:
        return self._text(f"revision/{row}/{number - 1}" if number else f"completion/{row}/0").text

    def _pairs(self) -> Iterator[tuple[int, int, int, str, str]]:
        """Yield (row, number of the first, number of the second, both texts) of all pairs that differ."""
        for row in range(len(self.prompts)):
            texts = [self._text(f"completion/{row}/{number}").text for number in range(self.num_completions)]
            for a, b in combinations(range(self.num_completions), 2):
                if texts[a] and texts[b] and texts[a] != texts[b]:
                    yield row, a, b, texts[a], texts[b]

    # --- asking ---

    @property
    def failed_requests(self) -> int:
        """Requests to servers that failed in this process."""
        return self.writer.failed + self.judge.counts["failed"]

    def _write(
        self, what: str, keys: Sequence[str], request: Callable[[int, int], list[Message] | None], max_tokens: int
    ) -> None:
        """Let the model write for each key; there is `NOTHING` to write where `request` gives None."""
        left = [key for key in keys if key not in self.journal]
        with progress_of(len(left), f"     {what}") as advance:
            for part in _parts(left, self.part_size):
                dialogues = {key: request(*map(int, key.split("/")[1:])) for key in part}
                asked = {key: dialogue for key, dialogue in dialogues.items() if dialogue is not None}
                self.writer.keep_errors = self.max_failed_requests - self.failed_requests
                written = self.writer.write(
                    list(asked.values()), [row_seed(self.seed, key) for key in asked], max_tokens
                )
                by_key = dict(zip(asked, written, strict=True))
                self.journal.add([{"key": key, **by_key.get(key, NOTHING)._asdict()} for key in part])
                advance(len(part))

    def _compare(self) -> None:
        left = [pair for pair in self._pairs() if _pair_key(pair) not in self.journal]
        with progress_of(2 * len(left), "     comparisons") as advance:
            for part in _parts(left, self.part_size):
                principles = [self._principle_of_pair(pair) for pair in part]
                self.judge.keep_errors = self.max_failed_requests - self.failed_requests
                lost = self.judge.counts["lost"]
                found = self.judge.compare(
                    [self.prompts[row] for row, *_ in part],
                    [first for *_, first, _ in part],
                    [second for *_, second in part],
                    [principle.comparison for principle in principles],
                    on_done=advance,
                )
                server_was_lost = self.judge.counts["lost"] > lost
                self.journal.add(
                    [
                        {
                            "key": _pair_key(pair),
                            "answers": (each.shown_first, each.shown_second),
                            "again": server_was_lost and each.probability is None,
                        }
                        for pair, each in zip(part, found, strict=True)
                    ]
                )

    # --- what was answered ---

    def _text(self, key: str) -> Written:
        return Written(self.journal[key]["text"], self.journal[key]["finished"])

    def _principle_of_pair(self, pair: tuple[int, int, int, str, str]) -> Principle:
        row, a, b, *_ = pair
        return self.principle_of("comparison", row, a * self.num_completions + b)

    def _revised(self) -> Iterator[Revised]:
        last = self.num_revisions - 1
        for row in range(len(self.prompts) if self.num_revisions else 0):
            yield Revised(
                row,
                self._text(f"completion/{row}/0"),
                self._text(f"critique/{row}/{last}").text,
                self._text(f"revision/{row}/{last}"),
                self.principle_of("revision", row, last),
            )

    def _judged(self) -> Iterator[Judged]:
        for pair in self._pairs():
            row, _, _, first, second = pair
            answers = self.journal[_pair_key(pair)]["answers"]
            yield Judged(row, first, second, self._principle_of_pair(pair), Comparison(*answers))


def _pair_key(pair: tuple[int, int, int, str, str]) -> str:
    row, a, b, *_ = pair
    return f"comparison/{row}/{a}/{b}"


def _parts(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _user(text: str) -> Message:
    return {"role": "user", "content": text}
