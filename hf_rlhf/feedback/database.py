"""The SQLite file of a store: its tables, and transactions that are on the disk when they end."""

import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_rlhf.errors import InputError, RunFailed

SCHEMA_VERSION = 1
LOCK_SECONDS = 30.0
"""Longest wait for a process that holds the file."""

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


class Database:
    """A file of feedback, for several processes, and for several threads through one connection.

    Args:
        file: made when it is not there.
        settings: of a new file, for the table `meta`.

    Raises `InputError` for a file that is no store, is damaged, or is of a newer version of this package, and
    `RunFailed` where the file cannot be read or written later.
    """

    def __init__(self, file: Path, settings: Mapping[str, str]):
        self.file, self._lock = file, threading.RLock()
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(
                file, timeout=LOCK_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._connection.row_factory = sqlite3.Row
            self._require_ours()
            self._use_log()
            self._connection.execute("PRAGMA foreign_keys=ON")
        except (OSError, sqlite3.OperationalError) as error:
            raise InputError(f"store={file} is invalid: it cannot be opened ({error}). Check the path.") from error
        except sqlite3.DatabaseError as error:
            if "malformed" in str(error):
                raise InputError(self._damaged(str(error))) from error
            raise InputError(f"store={file} is invalid: it is no store of feedback ({error}). Choose another file.") from error  # fmt: skip
        with self.transaction() as connection:
            if not self._tables():
                for statement in _statements(_SCHEMA):
                    connection.execute(statement)
                made = {"schema_version": str(SCHEMA_VERSION), **settings}
                connection.executemany("INSERT INTO meta VALUES (?, ?)", made.items())

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def read(self, query: str, *values: Any) -> list[sqlite3.Row]:
        """Return the rows of a query."""
        with self._lock, self._failures():
            return self._connection.execute(query, values).fetchall()

    @contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """Write all or nothing. When the outermost block has ended, all is on the disk.

        What is not `durable` survives the end of the process, and may be lost when the machine loses its power.
        """
        with self._lock:
            if self._connection.in_transaction:
                yield self._connection
                return
            with self._failures():
                self._connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    yield self._connection
                    self._connection.execute("COMMIT")
                except BaseException:
                    if self._connection.in_transaction:  # SQLite rolls back by itself where the disk is full
                        self._connection.execute("ROLLBACK")
                    raise

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Say in words which file SQLite cannot read or write."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise RunFailed(
                f"the store {self.file} cannot be read or written ({error}). What was being written is not kept; what"
                " was saved before is. Free the disk or the file, and try again."
            ) from error
        except sqlite3.IntegrityError:
            raise
        except sqlite3.DatabaseError as error:
            raise InputError(self._damaged(str(error))) from error

    def _tables(self) -> set[str]:
        return {row["name"] for row in self._connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}

    def _require_ours(self) -> None:
        """Look at a file before anything is written to it."""
        tables = self._tables()
        if not tables:
            return
        if not {"meta", "task", "event"} <= tables:
            raise sqlite3.DatabaseError("its tables are others")
        if (found := self._connection.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise InputError(self._damaged(found))
        (row,) = self._connection.execute("SELECT value FROM meta WHERE key = 'schema_version'").fetchall()
        if int(row["value"]) > SCHEMA_VERSION:
            raise InputError(
                f"store={self.file} is invalid: it has version {row['value']}, and this package reads up to"
                f" {SCHEMA_VERSION}. Install a newer one."
            )

    def _use_log(self) -> None:
        """Switch the file to a write-ahead log. SQLite does not wait by itself for a process that does the same."""
        until = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > until:
                    raise
                time.sleep(0.01)

    def _damaged(self, found: str) -> str:
        return (
            f"store={self.file} is invalid: it is damaged ({found}). Use a copy, or rescue what can be read:"
            f" sqlite3 {self.file} .recover | sqlite3 rescued.db"
        )


def _statements(script: str) -> Iterator[str]:
    """Split a script where SQLite says that a statement is complete; triggers hold semicolons."""
    statement = ""
    for part in script.split(";"):
        statement += part + ";"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
