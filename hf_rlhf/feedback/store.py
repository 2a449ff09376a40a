"""The store of feedback: tasks, and a log of answers that is only appended to, in one SQLite file.

An answer is acknowledged when it is on the disk (WAL, synchronous=FULL). An event is never changed or deleted, which
triggers in the file enforce; an answer that is given again, or taken back, is an event that supersedes the one before.
"""

import json
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from hf_rlhf.errors import InputError
from hf_rlhf.feedback.forms import form_from_json
from hf_rlhf.feedback.tasks import Task, canonical_json

ANSWER, SKIP, FLAG, UNDO = "answer", "skip", "flag", "undo"
FLAGS = ("harmful", "broken", "private")
PERSON, RULE, MODEL = "person", "rule", "model"
SCHEMA_VERSION = 1
LEASE_SECONDS = 600.0

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE task (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    form TEXT NOT NULL,
    prompt TEXT NOT NULL,
    completions TEXT NOT NULL,
    sources TEXT NOT NULL,
    gold TEXT,
    priority REAL NOT NULL,
    columns TEXT NOT NULL,
    added TEXT NOT NULL
);
CREATE INDEX task_order ON task (priority DESC, number);
CREATE INDEX task_gold ON task (id) WHERE gold IS NOT NULL;
CREATE TABLE event (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    uuid TEXT NOT NULL UNIQUE,
    task TEXT NOT NULL REFERENCES task (id),
    annotator TEXT NOT NULL,
    annotator_kind TEXT NOT NULL,
    kind TEXT NOT NULL,
    value TEXT,
    comment TEXT,
    shown_order TEXT,
    seconds REAL,
    created TEXT NOT NULL,
    app_version TEXT NOT NULL,
    supersedes INTEGER REFERENCES event (number)
);
CREATE INDEX event_task ON event (task, annotator);
CREATE INDEX event_annotator ON event (annotator, number);
CREATE UNIQUE INDEX event_supersedes ON event (supersedes) WHERE supersedes IS NOT NULL;
CREATE VIEW current AS SELECT * FROM event WHERE kind != 'undo'
    AND NOT EXISTS (SELECT 1 FROM event AS later WHERE later.supersedes = event.number);
CREATE TRIGGER event_is_kept BEFORE DELETE ON event BEGIN SELECT RAISE(ABORT, 'events are never deleted'); END;
CREATE TRIGGER event_is_fixed BEFORE UPDATE ON event BEGIN SELECT RAISE(ABORT, 'events are never changed'); END;
CREATE TABLE lease (task TEXT NOT NULL, annotator TEXT NOT NULL, expires REAL NOT NULL, PRIMARY KEY (task, annotator));
"""
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

    Raises `InputError` for a file that is no store, or of a newer version of this package.
    """

    def __init__(self, file: str | Path, *, create: bool = True, clock: Callable[[], float] = time.time):
        self.file, self.clock, self._lock = Path(file), clock, threading.RLock()
        if not create and not self.file.is_file():
            raise InputError(f"store={file} is invalid: there is no such file. Check the path.")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self.file, timeout=30, isolation_level=None, check_same_thread=False)
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")
            self._connection.execute("PRAGMA foreign_keys=ON")
            self._begin()
        except (OSError, sqlite3.DatabaseError) as error:
            raise InputError(
                f"store={file} is invalid: it is no store of feedback ({error}). Choose another file."
            ) from error

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def __enter__(self) -> "FeedbackStore":
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def add_tasks(self, tasks: Iterable[Task]) -> int:
        """Add tasks, and return how many were not there before."""
        added, now = 0, self._now()
        with self._transaction() as connection:
            for task in tasks:
                row = (
                    task.id,
                    canonical_json(task.form.to_json()),
                    *map(canonical_json, (task.prompt, list(task.completions), list(task.sources))),
                    None if task.gold is None else canonical_json(task.check(task.gold)),
                    task.priority,
                    canonical_json(dict(task.columns)),
                    now,
                )
                added += connection.execute(
                    "INSERT OR IGNORE INTO task (id, form, prompt, completions, sources, gold, priority, columns,"
                    " added) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    row,
                ).rowcount
        return added

    def task(self, id: str) -> Task:
        """Return a task. Raises `KeyError` where there is none of this id."""
        row = self._read("SELECT * FROM task WHERE id = ?", id).fetchone()
        if row is None:
            raise KeyError(id)
        return _task(row)

    def tasks(self) -> Iterator[Task]:
        """Return all tasks in the order in which they were added."""
        return map(_task, self._read("SELECT * FROM task ORDER BY number").fetchall())

    def append(self, event: Event) -> Event:
        """Append an event, and return it as it is in the log, when it is on the disk.

        One whose uuid is there already is returned as it is there. An answer replaces the one that the same annotator
        gave to the same task before.

        Raises `InvalidAnswer` for an answer that the form does not allow, `KeyError` for an unknown task, and
        `ValueError` when the same uuid was used for another event.
        """
        value = self._checked(event)
        with self._transaction() as connection:
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
                    event.comment or None,
                    None if event.shown_order is None else canonical_json(list(event.shown_order)),
                    event.seconds,
                    event.created or self._now(),
                    event.app_version or metadata.version("hf-rlhf"),
                    supersedes,
                ),
            )
            connection.execute("DELETE FROM lease WHERE task = ? AND annotator = ?", (event.task, event.annotator))
            appended = self._event("uuid = ?", event.uuid)
        assert appended is not None
        return appended

    def undo(self, annotator: str, uuid: str, *, lease_seconds: float = LEASE_SECONDS) -> Event | None:
        """Take back the last event of an annotator, and return that event; None where there is none.

        Its task is theirs to answer next: it is kept for them instead of those that they held. The same `uuid` again
        returns the same event and takes nothing else back.
        """
        with self._transaction() as connection:
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

    def events(self) -> list[Event]:
        """Return the whole log."""
        return list(map(_event, self._read(f"SELECT {_EVENT_COLUMNS} FROM event ORDER BY number")))

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
        kind: str = PERSON,
        overlap: int = 1,
        lease_seconds: float = LEASE_SECONDS,
        gold_every: int = 10,
        besides: Sequence[str] = (),
    ) -> Task | None:
        """Return the task to ask an annotator next, and keep it for them; None when nothing is left.

        The task that they hold comes first, so that they resume where they left, and its lease begins again. `besides`
        names tasks that they have in hand already: the next one is another.

        A task is asked until `overlap` annotators of this kind have answered or flagged it; each annotator gets it
        once. One that somebody holds counts as answered until the lease ends. A gold question is asked of everybody,
        about every `gold_every` tasks.
        """
        now = self.clock()
        with self._transaction() as connection:
            connection.execute("DELETE FROM lease WHERE expires <= ?", (now,))
            mine = (
                "NOT EXISTS (SELECT 1 FROM current WHERE current.task = task.id AND current.annotator = ?1)"
                " AND task.id NOT IN (SELECT value FROM json_each(?2))"
            )
            in_hand = json.dumps(list(besides))
            held = f"SELECT task.* FROM lease JOIN task ON task.id = lease.task WHERE lease.annotator = ?1 AND {mine} ORDER BY lease.rowid LIMIT 1"  # fmt: skip
            row = connection.execute(held, (annotator, in_hand)).fetchone()
            if row is None:
                given = connection.execute("SELECT COUNT(*) FROM current WHERE annotator = ?", (annotator,)).fetchone()[
                    0
                ]
                gold_now = (given + len(besides)) % gold_every == gold_every // 2
                takers = (
                    "(SELECT COUNT(*) FROM current WHERE current.task = task.id AND annotator_kind = ?3 AND kind IN"
                    " ('answer', 'flag')) + (SELECT COUNT(*) FROM lease WHERE lease.task = task.id AND annotator != ?1)"
                )
                ordinary = f"SELECT id FROM task WHERE gold IS NULL AND {mine} AND {takers} < ?4 ORDER BY priority DESC, number LIMIT 1"  # fmt: skip
                gold = f"SELECT id FROM task WHERE gold IS NOT NULL AND {mine} ORDER BY priority DESC, number LIMIT 1"
                for query in (gold, ordinary) if gold_now else (ordinary, gold):
                    parameters = (annotator, in_hand, kind, overlap) if query is ordinary else (annotator, in_hand)
                    if (row := connection.execute(query, parameters).fetchone()) is not None:
                        row = connection.execute("SELECT * FROM task WHERE id = ?", (row["id"],)).fetchone()
                        break
            if row is None:
                return None
            connection.execute(
                "INSERT INTO lease VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET expires = excluded.expires",
                (row["id"], annotator, now + lease_seconds),
            )
        return _task(row)

    def progress(self, annotator: str, *, kind: str = PERSON, overlap: int = 1) -> Progress:
        """Return how far an annotator is."""
        mine = self._read("SELECT kind, seconds FROM current WHERE annotator = ?", annotator).fetchall()
        count = {name: sum(row["kind"] == name for row in mine) for name in (ANSWER, SKIP, FLAG)}
        seconds = sorted(row["seconds"] for row in mine if row["kind"] == ANSWER and row["seconds"] is not None)
        left = self._read(
            "SELECT (SELECT COUNT(*) FROM task) - (SELECT COUNT(*) FROM (SELECT task, MAX(annotator = ?1) AS mine,"
            " SUM(annotator_kind = ?2 AND kind IN ('answer', 'flag')) AS takers FROM current GROUP BY task) WHERE mine OR"
            " takers >= ?3 AND task NOT IN (SELECT id FROM task WHERE gold IS NOT NULL))",
            annotator,
            kind,
            overlap,
        ).fetchone()[0]
        median = seconds[len(seconds) // 2] if seconds else None
        return Progress(count[ANSWER], count[SKIP], count[FLAG], left, median)

    def setting(self, key: str, default: str | None = None) -> str | None:
        """Return a setting of the store, such as `salt` (of the order of completions) or `guidelines`."""
        row = self._read("SELECT value FROM meta WHERE key = ?", key).fetchone()
        return default if row is None else row["value"]

    def set(self, key: str, value: str) -> None:
        """Write a setting."""
        with self._transaction() as connection:
            connection.execute(
                "INSERT INTO meta VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value", (key, value)
            )

    @property
    def salt(self) -> str:
        """The random text from which the orders of completions are drawn."""
        return self.setting("salt") or ""

    def _begin(self) -> None:
        """Make the tables of a new file, and require the version of one that is there."""
        self._connection.row_factory = sqlite3.Row
        with self._transaction() as connection:
            tables = {row["name"] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if not tables:
                for statement in _statements(_SCHEMA):
                    connection.execute(statement)
                made = {"schema_version": str(SCHEMA_VERSION), "salt": uuid.uuid4().hex, "made": self._now()}
                connection.executemany("INSERT INTO meta VALUES (?, ?)", made.items())
            elif not {"meta", "task", "event"} <= tables:
                raise sqlite3.DatabaseError("its tables are others")
            version = int(connection.execute("SELECT value FROM meta WHERE key = 'schema_version'").fetchone()["value"])
        if version > SCHEMA_VERSION:
            raise InputError(
                f"store={self.file} is invalid: it has version {version}, and this package reads up to"
                f" {SCHEMA_VERSION}. Install a newer one."
            )

    def _checked(self, event: Event) -> dict[str, Any] | None:
        task = self.task(event.task)
        if event.kind == ANSWER:
            return task.check(event.value)
        if event.kind == FLAG and (event.value or {}).get("reason") not in FLAGS:
            raise ValueError(f"the reason of a flag is one of {', '.join(FLAGS)}")
        if event.kind not in (SKIP, FLAG, UNDO):
            raise ValueError(f"{event.kind!r} is no kind of event")
        return None if event.value is None else dict(event.value)

    def _current(self, where: str, *values: Any, tail: str) -> list[Event]:
        return list(map(_event, self._read(f"SELECT {_EVENT_COLUMNS} FROM current WHERE {where} {tail}", *values)))

    def _event(self, where: str, value: Any) -> Event | None:
        row = self._read(f"SELECT {_EVENT_COLUMNS} FROM event WHERE {where}", value).fetchone()
        return None if row is None else _event(row)

    def _read(self, query: str, *values: Any) -> sqlite3.Cursor:
        with self._lock:
            return self._connection.execute(query, values)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Write all or nothing; the outermost block commits."""
        with self._lock:
            if self._connection.in_transaction:
                yield self._connection
                return
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def _now(self) -> str:
        return datetime.fromtimestamp(self.clock(), UTC).isoformat(timespec="milliseconds")


def new_uuid() -> str:
    """Return a uuid for an event."""
    return str(uuid.uuid4())


def _statements(script: str) -> Iterator[str]:
    """Split a script where SQLite says that a statement is complete; triggers hold semicolons."""
    statement = ""
    for part in script.split(";"):
        statement += part + ";"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _task(row: sqlite3.Row) -> Task:
    read = {name: json.loads(row[name]) for name in ("prompt", "completions", "sources", "columns")}
    return Task(
        form_from_json(json.loads(row["form"])),
        read["prompt"],
        tuple(read["completions"]),
        tuple(read["sources"]),
        None if row["gold"] is None else json.loads(row["gold"]),
        row["priority"],
        read["columns"],
    )


def _event(row: sqlite3.Row) -> Event:
    values = dict(row)
    for name in ("value", "shown_order"):
        values[name] = None if values[name] is None else json.loads(values[name])
    return Event(**values)
