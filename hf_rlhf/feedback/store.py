"""The store of feedback: tasks, and a log of answers that is only appended to, in one SQLite file.

An answer is acknowledged when it is on the disk (WAL, synchronous=FULL). An event is never changed or deleted, which
triggers in the file enforce; an answer that is given again, or taken back, is an event that supersedes the one before.
"""

import functools
import json
import sqlite3
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hf_rlhf import __version__
from hf_rlhf.errors import InputError
from hf_rlhf.feedback.assignments import Assignments
from hf_rlhf.feedback.database import Database
from hf_rlhf.feedback.forms import Form, form_from_json
from hf_rlhf.feedback.tasks import Task, canonical_json, form_text

ANSWER, SKIP, FLAG, UNDO = "answer", "skip", "flag", "undo"
FLAGS = ("harmful", "broken", "private")
PERSON, RULE, MODEL = "person", "rule", "model"
LEASE_SECONDS, LONGEST_NAME = 600.0, 200

_EVENT_COLUMNS = (
    "number, uuid, task, annotator, annotator_kind, kind, value, comment, shown_order, seconds, created, app_version,"
    " supersedes"
)


@dataclass(frozen=True)
class Event:
    """One line of the log.

    Attributes:
        uuid: made by whoever answers, so that an answer that is sent twice is kept once.
        task: the id of its task.
        annotator: a name; `annotator_kind` says whether it is a person, a rule or a model.
        kind: answer, skip, flag or undo.
        value: of an answer, in the normal form of its form; of a flag `{"reason": ...}`.
        shown_order: the numbers of the completions in the order in which they were shown.
        seconds: that the annotator took.
        created: UTC, ISO 8601.
        number: its place in the log; None before it is there.
        supersedes: the number of the event that it replaces or takes back.
    """

    uuid: str
    task: str
    annotator: str
    annotator_kind: str = PERSON
    kind: str = ANSWER
    value: Mapping[str, Any] | None = None
    comment: str | None = None
    shown_order: Sequence[int] | None = None
    seconds: float | None = None
    created: str = ""
    app_version: str = ""
    number: int | None = None
    supersedes: int | None = None


@dataclass(frozen=True)
class Progress:
    """Counts of how far an annotator is. `open` counts the tasks that this annotator could still be asked."""

    answered: int
    skipped: int
    flagged: int
    open: int
    seconds: float | None  # median of an answer


class FeedbackStore:
    """A file of feedback, for several processes and threads at once.

    Args:
        file: made when it is not there, unless `create` is False.
        clock: seconds since 1970; leases and times of events are by it.

    Raises `InputError` for a file that is no store, is damaged, or is of a newer version of this package, and
    `RunFailed` where a disk is full or the file is locked for long; what was being written then is not kept.
    """

    def __init__(self, file: str | Path, *, create: bool = True, clock: Callable[[], float] = time.time):
        self.file, self.clock = Path(file), clock
        if not create and not self.file.is_file():
            raise InputError(f"store={file} is invalid: there is no such file. Check the path.")
        self._database = Database(self.file, {"salt": uuid.uuid4().hex, "made": self._now()})
        self._assignments = Assignments()

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def __enter__(self) -> "FeedbackStore":
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def add_tasks(self, tasks: Iterable[Task]) -> int:
        """Add tasks, and return how many were not there before.

        One that is there already without a gold answer gets the one that is given now. Raises `InputError` for another
        gold answer than the one that is there; then nothing is added.
        """
        added, now = 0, self._now()
        with self._database.transaction() as connection:
            for task in tasks:
                row = (
                    task.id,
                    form_text(task.form),
                    *map(canonical_json, (task.prompt, list(task.completions), list(task.sources))),
                    None if task.gold is None else canonical_json(task.check(task.gold)),
                    task.priority,
                    canonical_json(dict(task.columns)),
                    now,
                )
                is_new = connection.execute(
                    "INSERT OR IGNORE INTO task (id, form, prompt, completions, sources, gold, priority, columns,"
                    " added) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    row,
                ).rowcount
                added += is_new
                if not is_new and task.gold is not None:
                    self._add_gold(connection, task)
        return added

    def _add_gold(self, connection: sqlite3.Connection, task: Task) -> None:
        """Make a task that is there already a gold question."""
        gold = canonical_json(task.check(task.gold))
        (found,) = connection.execute("SELECT gold FROM task WHERE id = ?", (task.id,)).fetchone()
        if found is None:
            connection.execute("UPDATE task SET gold = ? WHERE id = ?", (gold, task.id))
            self._assignments = Assignments()
        elif found != gold:
            raise InputError(
                f"gold={gold} is invalid: the store {self.file} has {found} for the same task. Give one of them alone."
            )

    def task(self, id: str) -> Task:
        """Return a task. Raises `KeyError` where there is none of this id."""
        rows = self._database.read("SELECT * FROM task WHERE id = ?", id)
        if not rows:
            raise KeyError(id)
        return _task(rows[0])

    def tasks(self) -> Iterator[Task]:
        """Return all tasks in the order in which they were added."""
        return map(_task, self._database.read("SELECT * FROM task ORDER BY number"))

    def append(self, event: Event) -> Event:
        """Append an event, and return it as it is in the log, when it is on the disk.

        One whose uuid is there already is returned as it is there. An answer replaces the one that the same annotator
        gave to the same task before. One that comes after its lease has ended is kept beside that of whoever was asked
        meanwhile, so a task can have more answers than `overlap`: nothing that was given is lost.

        Raises `InvalidAnswer` for an answer that the form does not allow, `KeyError` for an unknown task, and
        `ValueError` for a name of an annotator that is no line of text, and when the same uuid was used for another
        event.
        """
        value = self._checked(event)
        with self._database.transaction() as connection:
            known = self._event("uuid = ?", event.uuid)
            if known is not None:
                if (known.task, known.annotator, known.kind, known.value) != (
                    event.task,
                    event.annotator,
                    event.kind,
                    value,
                ):
                    raise ValueError(f"the uuid {event.uuid} belongs to another event")
                return known
            before = self.current(task=event.task, annotator=event.annotator)
            supersedes = event.supersedes if event.kind == UNDO else (before[-1].number if before else None)
            connection.execute(
                f"INSERT INTO event ({_EVENT_COLUMNS.removeprefix('number, ')}) VALUES ({', '.join('?' * 12)})",
                (
                    event.uuid,
                    event.task,
                    event.annotator,
                    event.annotator_kind,
                    event.kind,
                    None if value is None else canonical_json(value),
                    canonical_json(event.comment) if event.comment else None,
                    None if event.shown_order is None else canonical_json(list(event.shown_order)),
                    event.seconds,
                    event.created or self._now(),
                    event.app_version or __version__,
                    supersedes,
                ),
            )
            connection.execute("DELETE FROM lease WHERE task = ? AND annotator = ?", (event.task, event.annotator))
            appended = self._event("uuid = ?", event.uuid)
        assert appended is not None
        return appended

    def append_all(self, events: Iterable[Event]) -> int:
        """Append events, all or none, and return how many were not there before. Raises as `append` does."""
        with self._database.transaction():
            before = self._database.read("SELECT COUNT(*) FROM event")[0][0]
            for event in events:
                self.append(event)
            return self._database.read("SELECT COUNT(*) FROM event")[0][0] - before

    def undo(self, annotator: str, uuid: str, *, lease_seconds: float = LEASE_SECONDS) -> Event | None:
        """Take back the last event of an annotator, and return that event; None where there is none.

        Its task is theirs to answer next: it is kept for them instead of those that they held. The same `uuid` again
        returns the same event and takes nothing else back.
        """
        with self._database.transaction() as connection:
            if (known := self._event("uuid = ?", uuid)) is not None:
                return self._event("number = ?", known.supersedes)
            last = self._current("annotator = ?", annotator, tail="ORDER BY number DESC LIMIT 1")
            if not last:
                return None
            taken = last[0]
            self.append(Event(uuid, taken.task, annotator, taken.annotator_kind, UNDO, supersedes=taken.number))
            connection.execute("DELETE FROM lease WHERE annotator = ?", (annotator,))
            lease = (taken.task, annotator, self.clock() + lease_seconds)
            connection.execute("INSERT INTO lease VALUES (?, ?, ?)", lease)
        return taken

    def events(self, *, after: int = 0) -> list[Event]:
        """Return the log, or what came after the event of a number."""
        query = f"SELECT {_EVENT_COLUMNS} FROM event WHERE number > ? ORDER BY number"
        return list(map(_event, self._database.read(query, after)))

    def current(self, *, task: str | None = None, annotator: str | None = None) -> list[Event]:
        """Return the events that nothing supersedes, in the order of the log."""
        given = {"task": task, "annotator": annotator}
        named = {name: value for name, value in given.items() if value is not None}
        where = " AND ".join(f"{name} = ?" for name in named) or "1"
        return self._current(where, *named.values(), tail="ORDER BY number")

    def next_task(
        self,
        annotator: str,
        *,
        kind: str | None = PERSON,
        overlap: int = 1,
        lease_seconds: float = LEASE_SECONDS,
        gold_every: int = 10,
        besides: Sequence[str] = (),
    ) -> Task | None:
        """Return the task to ask an annotator next, and keep it for them; None when nothing is left.

        The task that they hold comes first, so that they resume where they left, and its lease begins again. `besides`
        names tasks that they have in hand already: the next one is another.

        A task is asked until `overlap` annotators of this kind (None: of any kind) have answered or flagged it; each
        annotator gets it once. One that somebody holds counts as answered until the lease ends. A gold question is
        asked of everybody, about every `gold_every` tasks.
        """
        now = self.clock()
        with self._database.transaction(durable=False) as connection:
            connection.execute("DELETE FROM lease WHERE expires <= ?", (now,))
            self._assignments.refresh(connection)
            id = self._task_of(annotator, kind, overlap, gold_every, set(besides))
            if id is None:
                return None
            connection.execute(
                "INSERT INTO lease VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET expires = excluded.expires",
                (id, annotator, now + lease_seconds),
            )
            return self.task(id)

    def _task_of(
        self, annotator: str, kind: str | None, overlap: int, gold_every: int, besides: set[str]
    ) -> str | None:
        """Return the id of the task that an annotator holds, or is asked next."""
        assignments = self._assignments
        done = assignments.done(annotator)
        for row in self._database.read("SELECT task FROM lease WHERE annotator = ? ORDER BY rowid", annotator):
            if row["task"] not in done and row["task"] not in besides:
                return row["task"]
        others = "SELECT task, COUNT(*) AS count FROM lease WHERE annotator != ? GROUP BY task"
        held = {row["task"]: row["count"] for row in self._database.read(others, annotator)}
        gold = assignments.next_gold(annotator, besides)
        if gold is not None and (len(done) + len(besides)) % gold_every == gold_every // 2:
            return gold
        ordinary = assignments.next_ordinary(annotator, kind, overlap, besides=besides, held=held)
        return gold if ordinary is None else ordinary

    def progress(self, annotator: str, *, kind: str | None = PERSON, overlap: int = 1) -> Progress:
        """Return how far an annotator is."""
        with self._database.transaction(durable=False) as connection:
            self._assignments.refresh(connection)
            count = Counter(standing.kind for standing in self._assignments.done(annotator).values())
            left = self._assignments.open(annotator, kind, overlap)
            median = self._assignments.median_seconds(annotator)
        return Progress(count[ANSWER], count[SKIP], count[FLAG], left, median)

    def setting(self, key: str, default: str | None = None) -> str | None:
        """Return a setting of the store, such as `salt` (of the order of completions) or `guidelines`."""
        rows = self._database.read("SELECT value FROM meta WHERE key = ?", key)
        return rows[0]["value"] if rows else default

    def set(self, key: str, value: str) -> None:
        """Write a setting."""
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT INTO meta VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value", (key, value)
            )

    @property
    def salt(self) -> str:
        """The random text from which the orders of completions are drawn."""
        return self.setting("salt") or ""

    def _checked(self, event: Event) -> dict[str, Any] | None:
        task = self.task(event.task)
        if not event.annotator.strip() or not event.annotator.isprintable() or len(event.annotator) > LONGEST_NAME:
            raise ValueError(f"an annotator's name is one line of 1 to {LONGEST_NAME} characters")
        if event.kind == ANSWER:
            return task.check(event.value)
        if event.kind == FLAG and (event.value or {}).get("reason") not in FLAGS:
            raise ValueError(f"the reason of a flag is one of {', '.join(FLAGS)}")
        if event.kind not in (SKIP, FLAG, UNDO):
            raise ValueError(f"{event.kind!r} is no kind of event")
        return None if event.value is None else dict(event.value)

    def _current(self, where: str, *values: Any, tail: str) -> list[Event]:
        return list(
            map(_event, self._database.read(f"SELECT {_EVENT_COLUMNS} FROM current WHERE {where} {tail}", *values))
        )

    def _event(self, where: str, value: Any) -> Event | None:
        rows = self._database.read(f"SELECT {_EVENT_COLUMNS} FROM event WHERE {where}", value)
        return _event(rows[0]) if rows else None

    def _now(self) -> str:
        return datetime.fromtimestamp(self.clock(), UTC).isoformat(timespec="milliseconds")


def new_uuid() -> str:
    """Return a uuid for an event."""
    return str(uuid.uuid4())


@functools.lru_cache(maxsize=1000)
def _form(text: str) -> Form:
    return form_from_json(json.loads(text))


def _task(row: sqlite3.Row) -> Task:
    read = {name: json.loads(row[name]) for name in ("prompt", "completions", "sources", "columns")}
    task = Task(
        _form(row["form"]),
        read["prompt"],
        tuple(read["completions"]),
        tuple(read["sources"]),
        None if row["gold"] is None else json.loads(row["gold"]),
        row["priority"],
        read["columns"],
    )
    task.__dict__["id"] = row["id"]  # so that it need not be hashed again
    return task


def _event(row: sqlite3.Row) -> Event:
    values = dict(row)
    for name in ("value", "shown_order", "comment"):
        values[name] = None if values[name] is None else json.loads(values[name])
    return Event(**values)
