"""Events come to another store as they were, however often they are carried there."""

import json

import pytest

from hf_rlhf.errors import InputError
from hf_rlhf.feedback import Event, FeedbackStore, Form, Task
from hf_rlhf.feedback.event_log import EventLog, merge_events
from hf_rlhf.feedback.store import SKIP, new_uuid

TASKS = [Task(Form("pairwise"), f"question {number}", ("a", "b")) for number in range(3)]


def lines_of(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_a_log_with_undone_answers_becomes_the_same_answers_elsewhere(tmp_path):
    with FeedbackStore(tmp_path / "there.db") as there, FeedbackStore(tmp_path / "here.db") as here:
        for store in (there, here):
            store.add_tasks(TASKS)
        here.append(Event(new_uuid(), TASKS[2].id, "Ben", kind=SKIP))  # so that the numbers differ
        log = EventLog(there, tmp_path / "events.jsonl")
        for task in TASKS[:2]:
            there.append(Event(new_uuid(), task.id, "Ann", value={"preferred": "tie"}, comment="ü", shown_order=[1, 0]))
            assert log.write_new() == 1
        there.undo("Ann", new_uuid())
        there.append(Event(new_uuid(), TASKS[1].id, "Ann", value={"preferred": 1, "strength": 2}, seconds=2.5))
        assert log.write_new() == 2
        assert log.write_new() == 0
        rows = lines_of(tmp_path / "events.jsonl")
        assert merge_events(here, rows) == (4, 0)
        assert merge_events(here, rows) == (0, 0)
        carried = lambda events: [(each.uuid, each.value, each.created, each.seconds) for each in events]  # noqa: E731
        assert carried(here.current(annotator="Ann")) == carried(there.current())


def test_events_of_other_tasks_are_counted_and_rows_that_are_none_are_errors(tmp_path):
    with FeedbackStore(tmp_path / "there.db") as there, FeedbackStore(tmp_path / "here.db") as here:
        there.add_tasks(TASKS)
        here.add_tasks(TASKS[:1])
        there.append(Event(new_uuid(), TASKS[1].id, "Ann", kind=SKIP))
        EventLog(there, tmp_path / "events.jsonl").write_new()
        assert merge_events(here, lines_of(tmp_path / "events.jsonl")) == (0, 1)
        with pytest.raises(InputError, match="row 1 lacks 'uuid'"):
            merge_events(here, [{"answer": 1}])
