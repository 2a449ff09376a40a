"""One run to a folder: a lock that dies with its process, and a folder that can be written to."""

import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hf_rlhf.distributed import failing_together, rank
from hf_rlhf.errors import InputError, require_path_name

LOCK_FILE = "run.lock"

logger = logging.getLogger(__name__)


class FolderLock:
    """The right to write into a run's folder, from its creation to `release` or to the end of the process.

    The kernel holds the lock and releases it when the process dies in any way. The content of the file (process, host,
    start) is information for people. Within one process the lock may be taken again: the recipe holds it, and its
    trainer.

    Raises `InputError` when the folder cannot be written to, or another run has it.
    """

    _held: dict[tuple[int, str], int] = {}  # how often this process holds a folder

    def __init__(self, folder: Path):
        require_folder_name(folder)
        self.file = folder.absolute() / LOCK_FILE
        self._key = (os.getpid(), os.path.realpath(folder))
        self._descriptor: int | None = None
        self._made: list[Path] = []
        if not self._held.get(self._key):
            self._made = _make_folder(folder)
            self._descriptor = self._take()
        self._held[self._key] = self._held.get(self._key, 0) + 1
        self._released = False

    def __enter__(self) -> "FolderLock":
        return self

    def __exit__(self, *raised: object) -> None:
        self.release()

    def release(self) -> None:
        """Release the folder. A folder that was made for this run and holds nothing is removed."""
        if self._released:
            return
        self._released = True
        self._held[self._key] -= 1
        if self._descriptor is not None:
            self.file.unlink(missing_ok=True)  # before it is unlocked, or it would be the next run's
            os.close(self._descriptor)
            for folder in self._made:
                try:
                    folder.rmdir()
                except OSError:
                    break

    def _take(self) -> int:
        import fcntl

        while True:
            try:
                descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT, 0o644)
            except OSError as error:
                raise InputError(_not_writable(self.file.parent, error)) from error
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(descriptor, 1000).decode(errors="replace")
                os.close(descriptor)
                raise InputError(_in_use(self.file, holder)) from None
            except OSError as error:  # a file system without locks
                logger.warning(
                    "%s cannot be locked (%s), so another run in this folder would not be noticed. Start no other run"
                    " there",
                    self.file,
                    error,
                )
            if _is_same_file(descriptor, self.file):
                break
            os.close(descriptor)  # its holder removed it while we waited
        left = os.read(descriptor, 1000).decode(errors="replace").strip()
        if left:
            logger.warning("%s was left by a run that has ended (%s). This run takes the folder over", self.file, left)
        os.ftruncate(descriptor, 0)
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "started": time.strftime("%Y-%m-%d %H:%M:%S")}
        os.pwrite(descriptor, json.dumps(owner).encode() + b"\n", 0)
        return descriptor


def require_folder_name(folder: str | os.PathLike, flag: str = "output_dir") -> None:
    """Raise `InputError` for what cannot be the name of a folder; `flag` gave it."""
    name = os.fspath(folder)
    if not name.strip() or any(ord(letter) < 32 for letter in name):
        raise InputError(
            f"{flag}={name!r} is invalid: it is empty or has control characters. Give the name of a folder."
        )
    require_path_name(name, flag)
    path = Path(name)
    try:
        in_the_way = [part for part in (path, *path.parents) if part.exists() and not part.is_dir()]
    except OSError as error:
        raise InputError(_not_writable(path, error, flag)) from error
    if in_the_way:
        raise InputError(f"{flag}={name!r} is invalid: {in_the_way[0]} is a file. Give the name of a folder.")


def _make_folder(folder: Path) -> list[Path]:
    """Make `folder`; return the folders that did not exist, innermost first."""
    missing = [part for part in (folder, *folder.parents) if not part.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(_not_writable(folder, error)) from error
    return missing


def _not_writable(folder: Path, error: OSError, flag: str = "output_dir") -> str:
    return f"{flag}={str(folder)!r} cannot be written to: {error.strerror}. Choose another folder."


def _in_use(file: Path, holder: str) -> str:
    try:
        owner = json.loads(holder)
        who = f"process {owner['pid']} on {owner['host']}, since {owner['started']}"
    except (ValueError, KeyError, TypeError):
        who = "another process"
    return f"output_dir={str(file.parent)!r} is in use by {who}. Wait for it to end, or choose another folder."


def _is_same_file(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(file))
    except FileNotFoundError:
        return False


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder` for this run while the block runs, by its first rank; every rank takes part."""
    lock = None
    with failing_together():
        if rank() == 0:
            lock = FolderLock(folder)
    try:
        yield
    finally:
        if lock is not None:
            lock.release()
