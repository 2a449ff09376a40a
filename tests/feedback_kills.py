"""Processes that append answers to one store until they are killed, and the count of what was lost."""

import random
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from hf_rlhf.feedback import Event, FeedbackStore, Form, Task
from hf_rlhf.feedback.store import ANSWER, new_uuid


@dataclass
class Outcome:
    """Counts of one experiment; `lost` are acknowledged answers that the log has not, `twice` tasks with two."""

    kills: int = 0
    acknowledged: int = 0
    sent_again: int = 0
    lost: int = 0
    twice: int = 0
    seconds: float = 0.0


@dataclass
class _Writer:
    name: str
    acknowledged: list[str] = field(default_factory=list)
    unacknowledged: tuple[str, str] | None = None  # (uuid, task) that was sent, and perhaps kept


def write(file: str, annotator: str, uuid: str = "", task: str = "") -> None:
    """Append answers until no task is left. An answer is printed before it is sent, and when it is acknowledged.

    The first one is that of `uuid`, as of a page that got no reply.
    """
    with FeedbackStore(file) as store:
        print("ready", flush=True)
        while True:
            if not uuid:
                asked = store.next_task(annotator, overlap=100)
                if asked is None:
                    return
                uuid, task = new_uuid(), asked.id
            print("sent", uuid, task, flush=True)
            store.append(Event(uuid, task, annotator, value={"preferred": 0}))
            print("kept", uuid, task, flush=True)
            uuid = ""


def kill_writers(
    file: Path, *, kills: int, answers: int, writers: int, seed: int, longest_life: float = 0.5
) -> Outcome:
    """Kill so many writers at random moments of their lives, until so many answers are acknowledged as well."""
    begun, outcome, rng, lock = time.monotonic(), Outcome(), random.Random(seed), threading.Lock()
    with FeedbackStore(file) as store:
        text = "a prompt of some length " * 20
        store.add_tasks(Task(Form(), f"{n} {text}", (f"good {n}", f"bad {n}")) for n in range(max(answers, 10_000)))
    crew = [_Writer(f"writer {n}") for n in range(writers)]

    def live(writer: _Writer) -> None:
        while True:
            with lock:
                if outcome.kills >= kills and sum(len(each.acknowledged) for each in crew) >= answers:
                    return
                life = rng.uniform(0, longest_life)
            if not _one_life(file, writer, life, outcome, lock):
                return

    threads = [threading.Thread(target=live, args=(writer,)) for writer in crew]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    outcome.acknowledged = sum(len(writer.acknowledged) for writer in crew)
    with FeedbackStore(file, create=False) as store:
        events = store.events()
    uuids = Counter(event.uuid for event in events)
    outcome.lost = sum(uuid not in uuids for writer in crew for uuid in writer.acknowledged)
    per_task = Counter((event.task, event.annotator) for event in events if event.kind == ANSWER)
    outcome.twice = sum(count > 1 for count in per_task.values())
    outcome.seconds = time.monotonic() - begun
    return outcome


def _one_life(file: Path, writer: _Writer, life: float, outcome: Outcome, lock: threading.Lock) -> bool:
    """Start a writer, kill it after `life` seconds of writing, and read what it printed. False when none is left."""
    again = writer.unacknowledged or ()
    with lock:
        outcome.sent_again += bool(again)
    command = [sys.executable, __file__, str(file), writer.name, *again]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    timer = threading.Timer(life, process.kill)
    timer.start()
    for line in process.stdout:
        if not line.endswith("\n"):  # torn by the kill: the parent has not seen it
            break
        what, uuid, task = line.split()
        if what == "sent":
            writer.unacknowledged = (uuid, task)
        else:
            writer.acknowledged.append(uuid)
            writer.unacknowledged = None
    timer.cancel()
    killed = process.wait() != 0
    with lock:
        outcome.kills += killed
    return killed


if __name__ == "__main__":
    write(*sys.argv[1:])
