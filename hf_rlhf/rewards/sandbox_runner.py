"""The script that `hf_rlhf.rewards.sandbox` runs in a process of its own. It imports nothing of this package."""

import ctypes  # noqa: F401  NumPy imports it, which `refuse` would refuse; later uses of it are refused
import json
import os
import resource
import sys
import types

_PROCESSES = ("os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "subprocess.Popen", "pty.spawn")  # fmt: skip
_REFUSED = (*_PROCESSES, "socket.", "ctypes.", "os.kill", "os.killpg", "resource.setrlimit", "resource.prlimit")
_CHANGES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown", "os.utime", "shutil.")  # fmt: skip
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def limit(limits: dict) -> None:
    """Set the limits of this process, which it cannot raise again."""
    megabyte = 2**20
    wanted = {
        "RLIMIT_CORE": 0,
        "RLIMIT_CPU": int(limits["cpu_seconds"]),
        "RLIMIT_FSIZE": int(limits["file_mb"]) * megabyte,
        "RLIMIT_NOFILE": 64,
        "RLIMIT_NPROC": 0,  # no other process or thread; root is not held by it, so `refuse` is there too
        "RLIMIT_AS": int(limits["memory_mb"]) * megabyte,
    }
    for name, value in wanted.items():
        kind = getattr(resource, name, None)
        if kind is None:
            continue
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(kind, (value, value))
        except (ValueError, OSError):  # macOS refuses some; the clock still ends the process
            continue


def refuse(event: str, arguments: tuple) -> None:
    """Refuse, as an audit hook, other processes, the network, and changes outside of the working directory."""
    if event == "socket.__new__" and arguments[1] == 1:  # AF_UNIX, for the pair that asyncio wakes itself with
        return
    if event.startswith(_REFUSED):
        raise PermissionError(f"{event} is not allowed here")
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING:
        _require_inside(arguments[0])
    elif event.startswith(_CHANGES):
        for each in arguments:
            if isinstance(each, (str, bytes, os.PathLike)):
                _require_inside(each)


def _require_inside(path) -> None:
    if isinstance(path, int) or path is None:
        return
    real = os.path.realpath(os.fsdecode(path))
    if real not in (os.devnull, _HERE) and not real.startswith(_HERE + os.sep):
        raise PermissionError(f"{path!r} is outside of the working directory")


def main() -> None:
    """Run the code and the test of the job, and write its token if both came to their end."""
    with open(sys.argv[1], encoding="utf-8") as file:
        job = json.load(file)
    os.remove(sys.argv[1])
    result = os.open(job["result"], os.O_WRONLY | os.O_CREAT, 0o600)
    limit(job["limits"])
    sys.addaudithook(refuse)
    module = types.ModuleType("completion")
    sys.modules[module.__name__] = module  # where dataclasses and pickle look the names of a class up
    code, test = job["code"], job["test"]
    exec(compile(code, "completion.py", "exec"), vars(module))
    exec(compile(test, "test.py", "exec"), vars(module))
    os.write(result, job["token"].encode())


_HERE = os.path.realpath(os.getcwd())

if __name__ == "__main__":
    main()
