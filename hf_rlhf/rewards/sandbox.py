"""A process of its own for code that a model wrote: limits on time, memory, processes and files, and no network.

The limits keep code that is harmful by accident from harming the machine. They are no boundary against an attacker:
the code runs as this user and can read what this user can read. Run it in a container where that matters.
"""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hf_rlhf.errors import InputError

Outcome = Literal["passed", "failed", "late"]

_RUNNER = Path(__file__).with_name("sandbox_runner.py")
_MARK = "HF_RLHF_SANDBOX"


@dataclass(frozen=True)
class Limits:
    """Limits of one process.

    Args:
        cpu_seconds: seconds of computing.
        seconds: seconds by the clock.
        memory_mb: address space in MB.
        file_mb: size of a file that it writes, in MB.
    """

    cpu_seconds: int = 5
    seconds: float = 20.0
    memory_mb: int = 1024
    file_mb: int = 16

    def __post_init__(self):
        for name in ("cpu_seconds", "seconds", "memory_mb", "file_mb"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name}={getattr(self, name)} must be above 0")


def require_sandbox() -> None:
    """Raise `InputError` on a system that cannot limit a process."""
    if sys.platform == "win32":
        raise InputError("code is executed on Linux and macOS only, where a process can be limited. Use one of these")


def run_limited(code: str, test: str, limits: Limits) -> Outcome:
    """Run `code` and then `test` in one namespace of a new process, within `limits`.

    It passed if both came to their end without an exception; leaving early (`exit()`) is no pass. It is late if the
    clock ended it, which a busy machine can cause. Nothing that it started is left behind.
    """
    folder = Path(tempfile.mkdtemp(prefix="hf_rlhf_sandbox_"))
    try:
        work, result, token = folder / "work", folder / "result", secrets.token_hex(16)
        work.mkdir()
        job = {"code": code, "test": test, "token": token, "result": str(result), "limits": vars(limits)}
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        in_time = _run(folder / "job.json", work, token, limits.seconds)
        if not in_time:
            return "late"
        return "passed" if result.is_file() and result.read_bytes()[:64] == token.encode() else "failed"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(job: Path, work: Path, token: str, seconds: float) -> bool:
    """Run the job in a process group of its own; return whether it ended before the clock ended it."""
    mark = secrets.token_hex(16)  # another one than the token, since the code can read its environment
    environment = {"HOME": str(work), "TMPDIR": str(work), "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", _MARK: mark}
    process = subprocess.Popen(
        [sys.executable, "-I", "-B", str(_RUNNER), str(job)],
        cwd=work,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        process.wait(seconds)
        return True
    except subprocess.TimeoutExpired:
        return False
    finally:
        _kill_group(process.pid)
        process.wait()
        _kill_marked(f"{_MARK}={mark}".encode())


def _kill_group(leader: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # macOS says the latter of a group of zombies
        os.killpg(leader, signal.SIGKILL)


def _kill_marked(mark: bytes) -> None:
    """End the processes with this variable in their environment: those that left the group, where there is /proc."""
    for _ in range(10):  # one may start another while they are looked for
        found = []
        for each in Path("/proc").glob("[0-9]*/environ"):
            try:
                if mark in each.read_bytes().split(b"\0"):
                    found.append(int(each.parent.name))
            except OSError:
                continue
        if not found:
            return
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
