"""Tasks: a prompt, its completions and the form that is asked about them, addressed by their content."""

from __future__ import annotations

import functools
import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hf_rlhf.feedback.forms import Form, check_answer, completions_of_form

if TYPE_CHECKING:  # hf_rlhf.types imports torch, which a server of the page does without
    from hf_rlhf.types import Prompt


@dataclass(frozen=True)
class Task:
    """One question to annotators.

    Attributes:
        form: what is asked.
        prompt: text or messages.
        completions: of the prompt; each a text, or a list of messages that continue the prompt.
        sources: who wrote each completion, such as a model's name. It never reaches an annotator.
        gold: the answer that is known to be right, for a question that checks annotators; None for an ordinary one.
        priority: tasks of a higher one are asked first.
        columns: other columns of the row that it was made of; they travel to the exports.
    """

    form: Form
    prompt: Prompt
    completions: tuple[Prompt, ...]
    sources: tuple[str, ...] = ()
    gold: Mapping[str, Any] | None = None
    priority: float = 0.0
    columns: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        low, high = completions_of_form(self.form)
        if not low <= len(self.completions) <= high:
            raise ValueError(
                f"a task of the form {self.form.kind} has {low if low == high else f'{low} to {high}'} completions,"
                f" not {len(self.completions)}"
            )
        if self.sources and len(self.sources) != len(self.completions):
            raise ValueError(f"{len(self.sources)} sources for {len(self.completions)} completions")
        if self.gold is not None:
            check_answer(self.form, self.texts, self.gold)

    @functools.cached_property
    def id(self) -> str:
        """Sha256 of the form, the prompt and the completions: the same question twice is one task."""
        content = [form_text(self.form), canonical_json(self.prompt), canonical_json(list(self.completions))]
        return hashlib.sha256(f"[{','.join(content)}]".encode()).hexdigest()

    @property
    def texts(self) -> list[str]:
        """The text of each completion: what spans count characters of."""
        return [text_of(completion) for completion in self.completions]

    def check(self, value: Any) -> dict[str, Any]:
        """Return an answer in its normal form. Raises `InvalidAnswer`."""
        return check_answer(self.form, self.texts, value)


@functools.lru_cache(maxsize=1000)
def form_text(form: Form) -> str:
    """Return a form as canonical JSON."""
    return canonical_json(form.to_json())


def text_of(completion: Prompt) -> str:
    """Return the text of a completion; messages are joined by an empty line."""
    if isinstance(completion, str):
        return completion
    return "\n\n".join(message.get("content") or "" for message in completion)  # None beside a call of a tool


def canonical_json(content: Any) -> str:
    """Return JSON with sorted keys and no spaces, the same for equal content.

    Half of a surrogate pair, which UTF-8 lacks, becomes its JSON escape.
    """
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def shown_order(task: str, annotator: str, salt: str, completions: int) -> list[int]:
    """Return the order in which an annotator sees the completions of a task: their numbers, first shown first.

    It is random over tasks and annotators, and the same each time.
    """
    key = hashlib.sha256(canonical_json([task, annotator, salt]).encode("utf-8")).digest()
    order = list(range(completions))
    random.Random(key).shuffle(order)
    return order


def shown_mark(task: str, annotator: str, salt: str) -> str:
    """Return a text that an answer brings back to the store that showed the task, where the order is `shown_order`.

    It tells neither the salt nor the order.
    """
    return hashlib.sha256(canonical_json(["mark", task, annotator, salt]).encode("utf-8")).hexdigest()[:32]


def as_shown(items: Sequence[Any], order: Sequence[int]) -> list[Any]:
    """Return items of completions in the order in which they are shown."""
    return [items[number] for number in order]
