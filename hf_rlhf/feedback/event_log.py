"""The log of a store as JSON lines, and the way back: to carry answers from one machine to another."""

import json
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from hf_rlhf.errors import InputError
from hf_rlhf.feedback.store import UNDO, Event, FeedbackStore

_CARRIED = tuple(field.name for field in fields(Event) if field.name not in ("number", "supersedes"))


class EventLog:
    """A file of JSON lines that follows the log of a store; a line is an event.

    Args:
        store: whose events are written, from now on those after `since`.
        file: that is appended to.
        lock: held while lines are written, so that an upload sees whole ones.
        since: number of the last event that is elsewhere already.
    """

    def __init__(
        self,
        store: FeedbackStore,
        file: Path,
        lock: AbstractContextManager[Any] | None = None,
        *,
        since: int = 0,
    ):
        self.store, self.file, self.lock, self._last = store, file, lock or nullcontext(), since
        self._uuids = {event.number: event.uuid for event in store.events()}

    def write_new(self) -> int:
        """Append the events that are not in the file yet; return how many."""
        with self.lock:
            events = self.store.events(after=self._last)
            self._uuids |= {event.number: event.uuid for event in events}
            if events:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                with self.file.open("a", encoding="utf-8") as lines:
                    lines.writelines(json.dumps(self._row(event)) + "\n" for event in events)
                self._last = events[-1].number or self._last
        return len(events)

    def _row(self, event: Event) -> dict[str, Any]:
        """Return an event without its number, which another store gives anew."""
        row = {name: value for name, value in asdict(event).items() if name in _CARRIED}
        return {**row, "undoes": self._uuids.get(event.supersedes) if event.kind == UNDO else None}


def merge_events(store: FeedbackStore, rows: Iterable[Mapping[str, Any]]) -> tuple[int, int]:
    """Append the events of an `EventLog` to a store.

    Returns how many were new, and how many were skipped because the store lacks their task. An event that is there
    already is not appended again.

    Raises `InputError` for a row that is no event.
    """
    known = {event.uuid: event.number for event in store.events()}
    tasks = {task.id for task in store.tasks()}
    added = skipped = 0
    for number, row in enumerate(rows, start=1):
        try:
            values = {name: row[name] for name in _CARRIED}
            undoes = row.get("undoes")
        except (KeyError, TypeError) as error:
            raise InputError(
                f"events are invalid: row {number} lacks {error}. Give a file that a Space wrote."
            ) from error
        if values["uuid"] in known:
            continue
        if values["task"] not in tasks or (values["kind"] == UNDO and undoes not in known):
            skipped += 1
            continue
        try:
            event = store.append(Event(**values, supersedes=known.get(undoes or "")))
        except ValueError as error:
            raise InputError(f"events are invalid: row {number}: {error}. Give a file that a Space wrote.") from error
        known[event.uuid] = event.number
        added += 1
    return added, skipped
