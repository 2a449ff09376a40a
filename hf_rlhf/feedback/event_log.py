"""The log of a store as JSON lines, and the way back: to carry answers from one machine to another."""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, fields
from datetime import UTC, datetime
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
    """Append the events of an `EventLog` to a store, all or none.

    Returns how many were new, and how many were skipped: those of tasks that the store lacks, and those older than
    what the store had of the same task and annotator before. An event that is there already is not appended again.

    Raises `InputError` for a row that is no event, and for an undo of an event that the store lacks or has replaced.
    """
    merge = _Merge(store)
    try:
        added = store.append_all(merge.new(rows))
    except sqlite3.IntegrityError as error:
        raise InputError(
            f"events are invalid: row {merge.row} takes back an answer that was replaced in {store.file}. Import into"
            " a store without answers of that annotator, or leave the row out."
        ) from error
    except ValueError as error:
        raise InputError(f"events are invalid: row {merge.row}: {error}. Give a file that a Space wrote.") from error
    return added, len(merge.skipped)


class _Merge:
    """The rows of a log that a store takes; it looks at what has been appended when it is asked for the next one."""

    def __init__(self, store: FeedbackStore):
        self.store, self.row, self.skipped = store, 0, set[str]()
        self._known: dict[str, int | None] = {}

    def new(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[Event]:
        """Yield events to append, one after the other."""
        tasks, latest, last = {task.id for task in self.store.tasks()}, dict[tuple[str, str], datetime](), 0
        for event in self.store.events():
            self._known[event.uuid], last = event.number, event.number or last
            key, created = (event.task, event.annotator), _time(event.created)
            latest[key] = max(latest.get(key, created), created)
        for self.row, row in enumerate(rows, start=1):
            values, undoes = self._read(row)
            if values["uuid"] in self._known:
                continue
            before = latest.get((values["task"], values["annotator"]))
            of_skipped = values["kind"] == UNDO and undoes in self.skipped
            if values["task"] not in tasks or of_skipped or (before and _time(values["created"]) < before):
                self.skipped.add(values["uuid"])
                continue
            if values["kind"] == UNDO and undoes not in self._known:
                raise InputError(
                    f"events are invalid: row {self.row} takes back an answer that {self.store.file} has not. Import"
                    " the earlier file first."
                )
            yield Event(**values, supersedes=self._known.get(undoes or ""))
            for event in self.store.events(after=last):
                self._known[event.uuid], last = event.number, event.number or last

    def _read(self, row: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
        try:
            return {name: row[name] for name in _CARRIED}, row.get("undoes")
        except (KeyError, TypeError) as error:
            raise InputError(
                f"events are invalid: row {self.row} lacks {error}. Give a file that a Space wrote."
            ) from error


def _time(created: Any) -> datetime:
    """Return a time of UTC; the most distant future for what is no time, so that its event is not old."""
    try:
        read = datetime.fromisoformat(created)
    except (TypeError, ValueError):
        return datetime.max.replace(tzinfo=UTC)
    return read if read.tzinfo else read.replace(tzinfo=UTC)
