"""The state of every task, read from the log as it grows, so that the next task is found without reading the log again.

It is a copy in memory of what the tables say. Each process has its own, and reads what others have appended before it
says anything.
"""

import sqlite3
import statistics
from collections import Counter
from collections.abc import Collection, Mapping
from typing import NamedTuple

COUNTED = ("answer", "flag")
"""Kinds of events after which a task has been asked once; one that is skipped is asked of somebody else."""


class Standing(NamedTuple):
    """The event of an annotator on a task that nothing supersedes."""

    kind: str
    annotator_kind: str
    seconds: float | None


class Assignments:
    """Tasks in the order in which they are asked, and what each annotator has done with them."""

    def __init__(self):
        self._last_task = self._last_event = 0
        self._tasks: list[tuple[float, int, str]] = []  # (-priority, number, id)
        self._gold: list[tuple[float, int, str]] = []
        self._gold_ids: set[str] = set()
        self._done: dict[str, dict[str, Standing]] = {}  # by annotator, by task
        self._takers: dict[str | None, Counter[str]] = {}  # by kind of annotator (None: all kinds), by task
        self._starts: dict[tuple[str, str | None, int], int] = {}  # nothing is left before here

    def refresh(self, connection: sqlite3.Connection) -> None:
        """Read the tasks and the events that were added since."""
        tasks = connection.execute(
            "SELECT number, id, gold IS NOT NULL AS is_gold, priority FROM task WHERE number > ? ORDER BY number",
            (self._last_task,),
        ).fetchall()
        for number, id, is_gold, priority in tasks:
            (self._gold if is_gold else self._tasks).append((-priority, number, id))
            if is_gold:
                self._gold_ids.add(id)
            self._last_task = number
        if tasks:
            self._tasks.sort()
            self._gold.sort()
            self._starts.clear()
        for number, task, annotator, *standing in connection.execute(
            "SELECT number, task, annotator, kind, annotator_kind, seconds FROM event WHERE number > ? ORDER BY number",
            (self._last_event,),
        ).fetchall():
            self._apply(task, annotator, Standing(*standing))
            self._last_event = number

    def _apply(self, task: str, annotator: str, standing: Standing) -> None:
        done = self._done.setdefault(annotator, {})
        before = done.pop(task, None)
        if before is not None:
            self._starts.clear()
            self._count(task, before, -1)
        if standing.kind == "undo":
            return
        done[task] = standing
        self._count(task, standing, 1)

    def _count(self, task: str, standing: Standing, by: int) -> None:
        if standing.kind in COUNTED:
            for kind in (standing.annotator_kind, None):
                self._takers.setdefault(kind, Counter())[task] += by

    def done(self, annotator: str) -> Mapping[str, Standing]:
        """Return what an annotator has done, by task."""
        return self._done.get(annotator, {})

    def next_gold(self, annotator: str, besides: Collection[str]) -> str | None:
        """Return the next gold question that an annotator has not been asked; None where there is none."""
        done = self.done(annotator)
        return next((id for *_, id in self._gold if id not in done and id not in besides), None)

    def next_ordinary(
        self, annotator: str, kind: str | None, overlap: int, *, besides: Collection[str], held: Mapping[str, int]
    ) -> str | None:
        """Return the next task that fewer than `overlap` annotators of this kind have, and this one has not.

        Args:
            annotator: who is asked.
            kind: of annotators that are counted; None counts all.
            overlap: annotators of this kind for each task.
            besides: tasks that are not to be returned.
            held: how many other annotators have a task in hand.
        """
        done, takers = self.done(annotator), self._takers.get(kind, Counter())
        start = self._starts.get((annotator, kind, overlap), 0)
        for index in range(start, len(self._tasks)):
            id = self._tasks[index][2]
            if id in done or takers[id] >= overlap:
                if index == start:
                    start += 1
            elif id not in besides and takers[id] + held.get(id, 0) < overlap:
                self._starts[annotator, kind, overlap] = start
                return id
        self._starts[annotator, kind, overlap] = start
        return None

    def open(self, annotator: str, kind: str | None, overlap: int) -> int:
        """Count the tasks that an annotator could still be asked."""
        done, takers = self.done(annotator), self._takers.get(kind, Counter())
        full = sum(n >= overlap and id not in done and id not in self._gold_ids for id, n in takers.items())
        return len(self._tasks) + len(self._gold) - len(done) - full

    def median_seconds(self, annotator: str) -> float | None:
        """Return the median time of an annotator's answers; None where none has a time."""
        seconds = [each.seconds for each in self.done(annotator).values() if each.kind == "answer" and each.seconds is not None]  # fmt: skip
        return statistics.median_high(seconds) if seconds else None
