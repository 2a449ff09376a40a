"""Run a command and end it, with all that it started, when whoever started this script is gone.

`python server_guard.py command ...`. Standard input is a pipe that the starter keeps open: it closes when the starter
closes it, fails, or is killed in whatever way. A script of its own, without imports from this package.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading

GRACE_SECONDS = 10


def main(command: list[str]) -> int:
    """Run the command and return its exit status."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)

    def end_with_the_starter() -> None:
        while os.read(sys.stdin.fileno(), 1):
            pass
        end(process)

    threading.Thread(target=end_with_the_starter, daemon=True).start()
    try:
        return process.wait()
    finally:
        end(process)  # what it started can outlive it


def end(process: subprocess.Popen) -> None:
    """Ask the process to end, which ends what it started; after some seconds, end the whole group."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_SECONDS)
    with contextlib.suppress(ProcessLookupError):  # when no process is left in it
        os.killpg(process.pid, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
