"""Events come to another store as they were, however often they are carried there."""

import itertools
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


@pytest.fixture
def parts(tmp_path):
    """Stores there and here, and the log there in two files: an answer; that it is taken back and given anew."""
    ticks = itertools.count(1e9)
    with FeedbackStore(tmp_path / "there.db", clock=lambda: next(ticks)) as there, FeedbackStore(tmp_path / "here.db") as here:  # fmt: skip
        for store in (there, here):
            store.add_tasks(TASKS)
        there.append(Event("first", TASKS[0].id, "Ann", value={"preferred": 1, "strength": 1}))
        log = EventLog(there, tmp_path / "one.jsonl")
        log.write_new()
        there.undo("Ann", "undo")
        there.append(Event("second", TASKS[0].id, "Ann", value={"preferred": 0, "strength": 1}))
        log.file = tmp_path / "two.jsonl"
        log.write_new()
        yield here, lines_of(tmp_path / "one.jsonl"), lines_of(tmp_path / "two.jsonl")


def test_an_undo_before_its_answer_is_refused_and_nothing_of_the_file_is_kept(parts):
    here, one, two = parts
    other = {**one[0], "uuid": "other", "task": TASKS[1].id}
    with pytest.raises(InputError, match=r"row 2 takes back an answer .* Import the earlier file first"):
        merge_events(here, [other, *two])
    assert here.events() == []
    assert merge_events(here, one) == (1, 0)
    assert merge_events(here, two) == (2, 0)
    assert [event.uuid for event in here.current()] == ["second"]


def test_an_older_answer_that_comes_later_does_not_replace_the_newer_one(parts):
    here, one, two = parts
    assert merge_events(here, two[1:]) == (1, 0)
    assert merge_events(here, one + two[:1]) == (0, 2)
    assert [event.uuid for event in here.current()] == ["second"]


def test_an_undo_of_an_answer_that_was_replaced_is_one_message(parts):
    here, one, two = parts
    merge_events(here, one)
    here.append(Event("again", TASKS[0].id, "Ann", value={"preferred": "tie"}, created=one[0]["created"]))
    with pytest.raises(InputError, match="row 1 takes back an answer that was replaced"):
        merge_events(here, two)
    assert [event.uuid for event in here.current()] == ["again"]


def test_events_of_other_tasks_are_counted_and_rows_that_are_none_are_errors(tmp_path):
    with FeedbackStore(tmp_path / "there.db") as there, FeedbackStore(tmp_path / "here.db") as here:
        there.add_tasks(TASKS)
        here.add_tasks(TASKS[:1])
        there.append(Event(new_uuid(), TASKS[1].id, "Ann", kind=SKIP))
        EventLog(there, tmp_path / "events.jsonl").write_new()
        assert merge_events(here, lines_of(tmp_path / "events.jsonl")) == (0, 1)
        with pytest.raises(InputError, match="row 1 lacks 'uuid'"):
            merge_events(here, [{"answer": 1}])
