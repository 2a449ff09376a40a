"""The store keeps what it acknowledged, asks each annotator once, and changes no event."""

import os
import sqlite3
import subprocess
import sys
from dataclasses import replace

import pytest

import hf_rlhf
from hf_rlhf.errors import InputError
from hf_rlhf.feedback import Event, FeedbackStore, Form, InvalidAnswer, Task
from hf_rlhf.feedback.store import ANSWER, FLAG, SKIP, new_uuid

PAIR = Form("pairwise")


def pair(number: int, **changed) -> Task:
    return Task(PAIR, f"question {number}", (f"good {number}", f"bad {number}"), **changed)


def answer(task: Task, annotator: str = "ann", preferred=0, strength=1, **changed) -> Event:
    value = {"preferred": preferred, "strength": strength} if preferred in (0, 1) else {"preferred": preferred}
    return Event(new_uuid(), task.id, annotator, value=value, **changed)


@pytest.fixture
def store(tmp_path):
    with FeedbackStore(tmp_path / "feedback.db") as opened:
        yield opened


def test_the_same_question_twice_is_one_task(store):
    assert store.add_tasks([pair(1), pair(2), pair(1)]) == 2
    assert store.add_tasks([pair(2), pair(3, sources=("a", "b"))]) == 1
    assert [task.prompt for task in store.tasks()] == ["question 1", "question 2", "question 3"]
    assert store.task(pair(3).id) == pair(3, sources=("a", "b"))


def test_a_task_that_gets_a_gold_answer_later_is_a_gold_question_from_then_on(store):
    right, wrong = ({"preferred": number, "strength": 1} for number in (0, 1))
    store.add_tasks([pair(1), pair(2)])
    store.append(answer(pair(1), "ben"))
    assert store.next_task("ann") == pair(2)
    assert store.add_tasks([pair(1, gold=right)]) == 0
    assert store.task(pair(1).id).gold == right
    assert store.next_task("ann", besides=[pair(2).id]) == pair(1, gold=right)  # gold is asked of everybody
    store.add_tasks([pair(1), pair(1, gold=right)])
    with pytest.raises(InputError, match=r"gold=.* is invalid: the store .* for the same task"):
        store.add_tasks([pair(3), pair(1, gold=wrong)])
    assert store.task(pair(1).id).gold == right
    assert len(list(store.tasks())) == 2


def test_a_late_answer_is_kept_beside_that_of_whoever_was_asked_meanwhile(tmp_path):
    now = [1000.0]
    with FeedbackStore(tmp_path / "late.db", clock=lambda: now[0]) as store:
        store.add_tasks([pair(1)])
        assert store.next_task("ann") == pair(1)
        now[0] += 700
        assert store.next_task("ben") == pair(1)
        events = [store.append(answer(pair(1), name)) for name in ("ben", "ann")]
        assert store.current() == events


def test_an_answer_is_kept_where_the_package_is_copied_and_not_installed(tmp_path):
    from hf_rlhf.feedback.page.space import write_space

    folder = write_space(tmp_path / "space", [pair(1)])
    script = (
        "import importlib.metadata as metadata, sys\n"
        "def raise_missing(name): raise metadata.PackageNotFoundError(name)\n"
        "metadata.version = raise_missing\n"
        "import hf_rlhf\n"
        "from hf_rlhf.feedback.store import Event, FeedbackStore\n"
        "store = FeedbackStore('tasks.db')\n"
        "(task,) = store.tasks()\n"
        "print(hf_rlhf.__file__, store.append(Event('1', task.id, 'ann', value={'preferred': 'tie'})).app_version)"
    )
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    run = subprocess.run([sys.executable, "-c", script], cwd=folder, env=environment, capture_output=True, text=True)
    assert run.stdout.split() == [str(folder / "hf_rlhf" / "__init__.py"), hf_rlhf.__version__], run.stderr


def test_an_answer_that_is_sent_twice_is_one_event(store):
    store.add_tasks([pair(1)])
    event = answer(pair(1))
    first = store.append(event)
    assert store.append(event) == first
    assert store.events() == [first]
    with pytest.raises(ValueError, match="belongs to another event"):
        store.append(replace(event, value={"preferred": 1, "strength": 1}))


def test_a_second_answer_replaces_the_first_which_stays_in_the_log(store):
    store.add_tasks([pair(1)])
    store.append(answer(pair(1)))
    second = store.append(answer(pair(1), preferred=1))
    assert store.current() == [second]
    assert [event.supersedes for event in store.events()] == [None, 1]


def test_undo_takes_back_the_last_event_and_asks_again(store):
    store.add_tasks([pair(1), pair(2)])
    store.append(answer(pair(1)))
    taken = store.append(Event(new_uuid(), pair(2).id, "ann", kind=SKIP))
    assert store.next_task("ann") is None
    key = new_uuid()
    assert store.undo("ann", key) == taken
    assert store.undo("ann", key) == taken  # sent twice, done once
    assert store.next_task("ann") == pair(2)
    assert [event.kind for event in store.current()] == [ANSWER]
    assert len(store.events()) == 3


def test_events_cannot_be_changed_or_deleted(store):
    store.add_tasks([pair(1)])
    store.append(answer(pair(1)))
    other = sqlite3.connect(store.file)
    for statement in ("DELETE FROM event", "UPDATE event SET value = '{}'"):
        with pytest.raises(sqlite3.IntegrityError, match="never"):
            other.execute(statement)


def test_two_annotators_with_overlap_one_share_the_tasks(tmp_path):
    now = [0.0]
    with FeedbackStore(tmp_path / "feedback.db", clock=lambda: now[0]) as store:
        store.add_tasks([pair(1), pair(2)])
        assert store.next_task("ann", lease_seconds=60) == pair(1)
        assert store.next_task("ann", lease_seconds=60) == pair(1)  # the same until it is answered
        assert store.next_task("bob", lease_seconds=60) == pair(2)
        assert store.next_task("cat", lease_seconds=60) is None
        now[0] = 61.0
        assert store.next_task("cat", lease_seconds=60) == pair(1)
        store.append(answer(pair(1), "cat"))
        store.append(Event(new_uuid(), pair(2).id, "bob", kind=FLAG, value={"reason": "broken"}))
        assert store.next_task("ann") is None


def test_with_overlap_two_both_get_every_task(store):
    store.add_tasks([pair(1), pair(2)])
    for name in ("ann", "bob"):
        for _ in range(2):
            task = store.next_task(name, overlap=2)
            store.append(answer(task, name))
        assert store.next_task(name, overlap=2) is None
    assert len(store.current()) == 4


def test_a_gold_question_is_asked_of_everybody(store):
    gold = pair(9, gold={"preferred": 0, "strength": 1})
    store.add_tasks([*map(pair, range(6)), gold])
    asked = {}
    for name in ("ann", "bob"):
        while (task := store.next_task(name, gold_every=6)) is not None:
            store.append(answer(task, name))
            asked.setdefault(name, []).append(task.prompt)
    assert asked["ann"].index("question 9") == 3  # among the others
    assert asked["bob"] == ["question 9"]


def test_an_answer_that_the_form_does_not_allow_is_refused(store):
    store.add_tasks([pair(1)])
    for value in (
        None,
        {},
        {"preferred": 2},
        {"preferred": True},
        {"preferred": 0, "strength": 4},
        {"preferred": 0, "more": 1},
    ):
        with pytest.raises(InvalidAnswer):
            store.append(Event(new_uuid(), pair(1).id, "ann", value=value))
    with pytest.raises(KeyError):
        store.append(answer(pair(5)))
    assert store.events() == []


def test_a_file_that_is_no_store_is_refused(tmp_path):
    (tmp_path / "text.db").write_text("a text that is long enough to be no database at all" * 20)
    with pytest.raises(InputError, match="no store of feedback"):
        FeedbackStore(tmp_path / "text.db")
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("CREATE TABLE something (a)")
    with pytest.raises(InputError, match="no store of feedback"):
        FeedbackStore(tmp_path / "other.db")
    with pytest.raises(InputError, match="no such file"):
        FeedbackStore(tmp_path / "none.db", create=False)


def test_the_store_is_found_again_as_it_was(tmp_path):
    text = "emoji 🙂, 漢字, العربية, NUL \x00, half \ud800?"
    with FeedbackStore(tmp_path / "feedback.db") as store:
        task = Task(
            Form("correction"), [{"role": "user", "content": "hi"}], ([{"role": "assistant", "content": "yo"}],)
        )
        store.add_tasks([task])
        event = store.append(
            Event(new_uuid(), task.id, "ann", value={"text": text[:-8]}, comment="so", shown_order=[0], seconds=2.5)
        )
        salt = store.salt
    with FeedbackStore(tmp_path / "feedback.db") as again:
        assert list(again.tasks()) == [task]
        assert again.events() == [event]
        assert again.salt == salt
