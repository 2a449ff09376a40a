"""Rewards on disk that survive runs, found again by the content of what was rewarded.

A key is the SHA-256 of the version of this format, the identity of the reward, the prompt, the completion, and the
columns that the reward gets. The identity is

- of a reward model, a digest of its weights, config, tokenizer and chat template;
- of a named reward, its arguments, and the digest of its model where it has one;
- of a Python function, its module, its name and its attribute `cache_key`. A function without one is never cached: it
  may read files, other functions or a server, and nothing tells when its rewards would be others. By `cache_key`, text
  to be changed with every change of the function, its author takes that over.

The file is SQLite: a write-ahead log that reaches the disk before `store` returns (synchronous=FULL), one writer at a
time, and any number of processes. A process that is killed leaves whole rows only. Each row has a checksum of its own,
so that a damaged one is computed again. The folder has to be on a disk of this machine: the log of SQLite does not work
over network file systems.
"""

import hashlib
import json
import logging
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from hf_rlhf.errors import InputError, RunFailed, require_path_name

CACHE_FILE = "rewards.sqlite"
FORMAT = 2
"""Part of every key. It is raised when the file changes, and when a named reward computes other numbers than before."""

_BUSY_SECONDS = 60.0
_LOOKED_UP_AT_ONCE = 500  # SQLite takes 999 variables a statement, in old versions

logger = logging.getLogger(__name__)


class Kept(NamedTuple):
    """The kept reward of one completion, and the values that the function logged about it with `log_extra`."""

    value: float | None
    extra: dict[str, Any]


class RewardCache:
    """The rewards in `folder`, of any number of reward functions and runs.

    Raises `InputError` where the folder cannot be written to, and where its file is damaged or of a later version.
    """

    def __init__(self, folder: str | Path):
        require_path_name(str(folder), "reward_cache")
        self.folder = Path(folder).expanduser()
        self.file = self.folder / CACHE_FILE
        self._lock = threading.Lock()  # async rewards are stored from the thread of their event loop
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(
                self.file, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._open()
        except OSError as error:
            raise self._invalid(f"it cannot be written to ({error.strerror})", "Name another folder") from error
        except sqlite3.DatabaseError as error:
            raise self._damaged(error) from error

    def find(self, keys: Sequence[bytes]) -> dict[bytes, Kept]:
        """Return what is kept under these keys; a row whose checksum does not fit is not among it."""
        found: dict[bytes, Kept] = {}
        different = list(dict.fromkeys(keys))
        with self._locked():
            for start in range(0, len(different), _LOOKED_UP_AT_ONCE):
                part = different[start : start + _LOOKED_UP_AT_ONCE]
                marks = ",".join("?" * len(part))
                rows = self._database.execute(f"SELECT key, kept, checksum FROM rewards WHERE key IN ({marks})", part)
                for key, kept, checksum in rows.fetchall():
                    if checksum == _checksum(key, kept):
                        found[key] = Kept(*json.loads(kept))
                    else:
                        logger.warning("%s: a row is damaged; its reward is computed again", self.file)
        return found

    def store(self, rows: Mapping[bytes, Kept]) -> None:
        """Keep these rewards. They are on the disk when this returns, all of them or none."""
        texts = {key: json.dumps(kept, default=str) for key, kept in rows.items()}
        values = [(key, text, _checksum(key, text)) for key, text in texts.items()]
        if not values:
            return
        with self._locked():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                self._database.executemany("INSERT OR REPLACE INTO rewards VALUES (?, ?, ?)", values)
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise

    def __len__(self) -> int:
        """Return the number of rewards that are kept."""
        with self._locked():
            return self._database.execute("SELECT count(*) FROM rewards").fetchone()[0]

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def _open(self) -> None:
        execute = self._database.execute
        self._use_log()
        execute("PRAGMA synchronous=FULL")
        if (problem := execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise sqlite3.DatabaseError(problem.splitlines()[-1])
        version = execute("PRAGMA user_version").fetchone()[0]
        if version > FORMAT:
            raise self._invalid(f"its file has format {version}, and this version reads {FORMAT}", "Update hf_rlhf")
        if version < FORMAT:
            execute("BEGIN IMMEDIATE")
            execute(
                "CREATE TABLE IF NOT EXISTS rewards"
                " (key BLOB PRIMARY KEY, kept TEXT NOT NULL, checksum BLOB NOT NULL) WITHOUT ROWID"
            )
            execute(f"PRAGMA user_version={FORMAT}")
            execute("COMMIT")

    def _use_log(self) -> None:
        """Switch the write-ahead log on; SQLite does not wait by itself where two processes do that at once."""
        until = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                mode = self._database.execute("PRAGMA journal_mode=WAL").fetchone()[0]
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > until:
                    raise
                time.sleep(0.05)
                continue
            if mode != "wal":
                raise self._invalid("its disk has no write-ahead log of SQLite", "Name a folder on a local disk")
            return

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Use the connection alone, and raise its errors as errors of a run."""
        with self._lock:
            try:
                yield
            except sqlite3.OperationalError as error:  # a full disk, another process that never lets go
                raise RunFailed(f"reward_cache: {self.file} cannot be used: {error}") from error
            except sqlite3.DatabaseError as error:
                raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> InputError:
        if isinstance(error, sqlite3.OperationalError):
            return self._invalid(f"{CACHE_FILE} cannot be opened ({error})", "Name a folder that can be written to")
        files = ", ".join(f"{CACHE_FILE}{suffix}" for suffix in ("", "-wal", "-shm"))
        return self._invalid(
            f"{CACHE_FILE} is damaged ({error})", f"Remove {files}; the rewards are then computed again"
        )

    def _invalid(self, reason: str, advice: str) -> InputError:
        return InputError(f"reward_cache={self.folder} is invalid: {reason}. {advice}.")


def content_key(identity: str, prompt: Any, completion: Any, columns: Mapping[str, Any]) -> bytes | None:
    """Return the key of one completion; None where a column holds what JSON cannot say exactly, such as an image."""
    try:
        content = json.dumps([FORMAT, identity, prompt, completion, columns], sort_keys=True, ensure_ascii=True)
    except (TypeError, ValueError):
        return None
    return hashlib.sha256(content.encode("ascii")).digest()


def _checksum(key: bytes, kept: str) -> bytes:
    return hashlib.sha256(key + kept.encode("utf-8")).digest()[:8]
