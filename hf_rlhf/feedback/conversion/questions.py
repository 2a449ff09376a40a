"""Tasks in the layout in which all rows of an export are written: as messages, or as text."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from hf_rlhf.data.json_columns import ROW_OPTIONS
from hf_rlhf.data.layouts import LAYOUT_COLUMNS
from hf_rlhf.data.public_formats import FORMATS
from hf_rlhf.data.shapes import SCORES
from hf_rlhf.feedback.store import Event
from hf_rlhf.feedback.tasks import Task, canonical_json, text_of
from hf_rlhf.types import Prompt

PROVENANCE = ("annotators", "n", "agreement", "sources", "event_ids")
_WRITTEN = ("margin", "completions", "ratings", "label", "spans", "fields", "original", *PROVENANCE)
RESERVED = frozenset((*LAYOUT_COLUMNS, *SCORES, *_WRITTEN, *(name for each in FORMATS.values() for name in each.needs)))
"""Columns of a task that are not exported: they would be written over, or be read as another format."""


class Item(NamedTuple):
    """A completion as it is exported; `key` is equal for equal ones, and `source` is who wrote it."""

    completion: Prompt
    key: str
    source: str | None


@dataclass(frozen=True)
class Question:
    """A task in the layout of the export; `key` is equal for equal prompts that are rendered alike."""

    task: Task
    prompt: Prompt
    key: str
    items: tuple[Item, ...]
    columns: Mapping[str, Any]


class Answer(NamedTuple):
    """An answer that nothing supersedes, with what it answers."""

    question: Question
    event: Event


@dataclass(frozen=True)
class Layout:
    """The one layout of an export: messages as soon as any task has messages, else text."""

    conversational: bool
    separator: str

    @classmethod
    def of(cls, tasks: Iterable[Task], separator: str) -> "Layout":
        """Return the layout that fits all of these tasks."""
        return cls(
            any(isinstance(part, list) for task in tasks for part in (task.prompt, *task.completions)), separator
        )

    def question(self, task: Task) -> Question:
        """Return the task in this layout."""
        prompt = _message("user", task.prompt) if self.conversational else task.prompt
        sources = task.sources or (None,) * len(task.completions)
        items = tuple(
            self.item(task.prompt, completion, source)
            for completion, source in zip(task.completions, sources, strict=True)
        )
        columns = {name: value for name, value in task.columns.items() if name not in RESERVED}
        options = {name: columns.get(name) for name in ROW_OPTIONS}
        return Question(task, prompt, canonical_json([prompt, options]), items, columns)

    def item(self, prompt: Prompt, completion: Prompt, source: str | None = None) -> Item:
        """Return a completion of a prompt in this layout."""
        made = _message("assistant", completion) if self.conversational else self._joined(prompt, completion)
        return Item(made, canonical_json(made), source)

    def _joined(self, prompt: Prompt, completion: Prompt) -> str:
        before, text = text_of(prompt), text_of(completion)
        meets = before[-1:].isspace() or text[:1].isspace() or not text
        return text if meets else self.separator + text


def _message(role: str, content: Prompt) -> Prompt:
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    return [{"role": message["role"], **message} for message in content]  # the role first, as people write it


def is_empty(item: Item) -> bool:
    """Return whether a completion ends in nothing that a model could learn to write."""
    if isinstance(item.completion, str):
        return not item.completion.strip()
    last: Mapping[str, Any] = item.completion[-1]
    return not (last.get("content") or "").strip() and not last.get("tool_calls")
