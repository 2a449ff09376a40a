"""Tasks that ask which of two models' completions is better, and the shares of annotators who prefer one."""

import hashlib
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from hf_rlhf.feedback.forms import TIE, Form
from hf_rlhf.feedback.store import ANSWER, FeedbackStore
from hf_rlhf.feedback.tasks import Task, canonical_json
from hf_rlhf.types import Message, Prompt


class ComparedText(NamedTuple):
    """A completion and the name of the model that wrote it."""

    source: str
    text: str


def order_of_texts(texts: Sequence[Any]) -> list[int]:
    """Return an order of completions that is a matter of the texts alone, and so says nothing of who wrote them."""
    digests = [hashlib.sha256(canonical_json(text).encode()).digest() for text in texts]
    return sorted(range(len(texts)), key=lambda number: digests[number])


def comparison_task(
    prompt: Prompt, both: Sequence[ComparedText], form: Form, columns: Mapping[str, Any] | None = None
) -> Task:
    """Return the task to compare two completions, in the order of their texts."""
    ordered = [both[number] for number in order_of_texts([each.text for each in both])]
    completions = tuple([Message(role="assistant", content=each.text)] for each in ordered)
    return Task(form, prompt, completions, tuple(each.source for each in ordered), columns=columns or {})


def share_that_prefers(store: FeedbackStore, task: Task, text: str) -> float | None:
    """Return the share of the answers to a comparison that prefer the completion `text`; None without an answer.

    A tie counts half, and so does the answer that both are bad.
    """
    place = task.texts.index(text)
    preferred = [
        (event.value or {}).get("preferred", TIE) for event in store.current(task=task.id) if event.kind == ANSWER
    ]
    return fmean(0.5 if isinstance(each, str) else float(each == place) for each in preferred) if preferred else None
