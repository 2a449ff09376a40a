"""The desk at which annotators answer: hands out tasks, and takes back answers; what the routes call."""

import math
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import hf_rlhf
from hf_rlhf.feedback.forms import LONGEST_TEXT
from hf_rlhf.feedback.page.views import by_number, by_place, shown_task
from hf_rlhf.feedback.store import ANSWER, FLAG, PERSON, SKIP, Event, FeedbackStore, Progress
from hf_rlhf.feedback.tasks import Task, shown_mark, shown_order

IN_HAND = 2
"""Tasks that a page holds: the one that is shown, and the one after it."""
LONGEST_NAME = 80
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Refused(ValueError):
    """A request that cannot be met. The message says why, and what to do."""


class Desk:
    """Tasks of a store for the people who answer them, each by a name.

    Args:
        store: of the tasks; its settings `overlap`, `gold_every` and `guidelines` count, and with `overlap_of=all`
            answers of rules and models count for `overlap` as those of people do.
        annotator: the one who answers; None asks each person for a name.
        until: whether enough is answered.
        stop_when_done: whether the desk closes when `until` says so, or when nothing is left to ask.
        recorded: called after each event that the store has got.
    """

    def __init__(
        self,
        store: FeedbackStore,
        *,
        annotator: str | None = None,
        until: Callable[[], bool] | None = None,
        stop_when_done: bool = False,
        recorded: Callable[[], None] = lambda: None,
    ):
        self.store, self.annotator, self.until, self.recorded = store, annotator, until, recorded
        self.stop_when_done = stop_when_done or until is not None
        self.overlap = int(store.setting("overlap") or 1)
        self.gold_every = int(store.setting("gold_every") or 10)
        self._counted = None if store.setting("overlap_of") == "all" else PERSON
        self._seen: set[str] = set()
        self._lock = threading.Lock()
        self._closed = False

    def name_of(self, given: Any) -> str:
        """Return a name as annotators are called by. Raises `Refused` for one that cannot be used."""
        name = " ".join(given.split()) if isinstance(given, str) else ""
        if not name or len(name) > LONGEST_NAME or not all(each.isprintable() for each in name):
            raise Refused(f"A name has 1 to {LONGEST_NAME} letters. Type another one.")
        if any(event.annotator_kind != PERSON for event in self.store.current(annotator=name)[:1]):
            raise Refused("A model or a rule has answered by this name. Type another one.")
        return name

    def tasks(self, annotator: str, holding: Sequence[str] = ()) -> dict[str, Any]:
        """Return the tasks that fill the hand of a page which holds some, its progress, and whether all is done."""
        finished = self.finished(annotator)
        tasks: list[Task] = []
        while not finished and len(holding) + len(tasks) < IN_HAND:
            held = (*holding, *(task.id for task in tasks))
            task = self.store.next_task(
                annotator, kind=self._counted, overlap=self.overlap, gold_every=self.gold_every, besides=held
            )
            if task is None:
                break
            tasks.append(task)
        progress = self._progress(annotator)
        return {
            "tasks": [self._shown(task, annotator) for task in tasks],
            "progress": {
                "done": progress.answered + progress.skipped + progress.flagged,
                "open": progress.open,
                "seconds": progress.seconds,
            },
            "finished": finished,
            "stops": self.stop_when_done,
        }

    def record(self, annotator: str, given: Mapping[str, Any]) -> Event:
        """Append an answer, a skip or a flag, and return it when it is on the disk.

        Raises `Refused` for what is no event or was shown by another store, `InvalidAnswer` for an answer that its
        form does not allow, and `KeyError` for an unknown task.
        """
        kind, comment, seconds = given.get("kind"), given.get("comment"), given.get("seconds")
        if kind not in (ANSWER, SKIP, FLAG):
            raise Refused("The kind of an event is answer, skip or flag.")
        if comment is not None and not (isinstance(comment, str) and len(comment) <= LONGEST_TEXT):
            raise Refused(f"A comment is a text of at most {LONGEST_TEXT} characters.")
        task = self.store.task(str(given.get("task")))
        if given.get("shown") != shown_mark(task.id, annotator, self.store.salt):
            raise Refused(
                "This answer is about a task that another store has shown, where the replies may have stood in another"
                " order. Answer it again here."
            )
        order = self._order(task, annotator)
        value = given.get("value")
        event = self.store.append(
            Event(
                _uuid(given),
                task.id,
                annotator,
                kind=kind,
                value=by_number(task, value, order) if kind == ANSWER else value if kind == FLAG else None,
                comment=comment,
                shown_order=order,
                seconds=_seconds(seconds),
                app_version=hf_rlhf.__version__,
            )
        )
        self.recorded()
        return event

    def undo(self, annotator: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """Take back the last event of an annotator; return its task and what was answered, or no task."""
        taken = self.store.undo(annotator, _uuid(given))
        if taken is None:
            return {"task": None}
        self.recorded()
        task = self.store.task(taken.task)
        value = by_place(task, taken.value, self._order(task, annotator)) if taken.kind == ANSWER else taken.value
        return {
            "task": self._shown(task, annotator),
            "taken": {"kind": taken.kind, "value": value, "comment": taken.comment},
        }

    def finished(self, annotator: str | None = None) -> bool:
        """Return whether enough is answered; once it is, it stays so. `annotator` is who asks."""
        with self._lock:
            if annotator is not None:
                self._seen.add(annotator)
            if not self._closed and self.stop_when_done:
                self._closed = self._enough()
            return self._closed

    def _enough(self) -> bool:
        if self.until is not None and self.until():
            return True
        names = self._seen if self.annotator is None else {self.annotator}
        return bool(names) and not any(self._progress(name).open for name in names)

    def _progress(self, annotator: str) -> Progress:
        return self.store.progress(annotator, kind=self._counted, overlap=self.overlap)

    def _order(self, task: Task, annotator: str) -> list[int]:
        return shown_order(task.id, annotator, self.store.salt, len(task.completions))

    def _shown(self, task: Task, annotator: str) -> dict[str, Any]:
        mark = shown_mark(task.id, annotator, self.store.salt)
        return {**shown_task(task, self._order(task, annotator)), "shown": mark}


def _uuid(given: Mapping[str, Any]) -> str:
    found = given.get("uuid")
    if not isinstance(found, str) or not _UUID.fullmatch(found):
        raise Refused("An event needs a uuid.")
    return found


def _seconds(given: Any) -> float | None:
    if isinstance(given, bool) or not isinstance(given, (int, float)) or not -math.inf < given < math.inf:
        return None
    return round(float(min(max(given, 0.0), 86400.0)), 3)  # cut before it is a float, which 10**400 cannot be
