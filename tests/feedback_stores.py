"""Stores with answers to tasks of every form, without a page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_rlhf.data.files import read_rows
from hf_rlhf.data.groups import prepare_rating_set
from hf_rlhf.data.preferences import prepare_preference_set
from hf_rlhf.data.prepared import PreparedSet
from hf_rlhf.data.report import Limit
from hf_rlhf.data.rows import LoadedRows
from hf_rlhf.data.texts import prepare_text_set
from hf_rlhf.feedback import Event, FeedbackStore, Form, Task
from hf_rlhf.feedback.store import new_uuid
from hf_rlhf.records import write_json_lines

LIMIT = Limit("max_length", None, "are skipped")
PAIR, RANKED, RATED = Form("pairwise"), Form("ranking"), Form("rating")
FIXED = Form("correction")


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def reply(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def say(store: FeedbackStore, task: Task, value: Mapping[str, Any] | None, annotator: str = "ann", **changed) -> Event:
    """Add the task where it is not there, and append an answer."""
    store.add_tasks([task])
    return store.append(Event(changed.pop("uuid", new_uuid()), task.id, annotator, value=value, **changed))


def prefer(store: FeedbackStore, task: Task, preferred: Any, annotator: str = "ann", strength: int = 1) -> Event:
    value = {"preferred": preferred, "strength": strength} if preferred in (0, 1) else {"preferred": preferred}
    return say(store, task, value, annotator)


def read_as(stage: str, rows: Sequence[Mapping[str, Any]], folder: Path, tokenizer) -> PreparedSet:
    """Write rows as they are exported, and read them as `hf-rlhf reward` or `sft` does."""
    file = folder / f"{stage}.jsonl"
    write_json_lines(file, rows)
    loaded: LoadedRows = read_rows(str(file))
    if stage == "sft":
        return prepare_text_set(loaded, tokenizer, role=stage, limit=LIMIT)
    if stage == "reward":
        return prepare_preference_set(loaded, tokenizer, role=stage, limit=LIMIT)
    return prepare_rating_set(loaded, tokenizer, role=stage, limit=LIMIT, rating_weights={}, compared=False)
