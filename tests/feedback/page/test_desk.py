"""Completions stand in a random order that is kept, and answers come back to the right ones."""

import pytest

from hf_rlhf.feedback import FeedbackStore, Form, Task
from hf_rlhf.feedback.page.desk import Desk, Refused
from hf_rlhf.feedback.page.views import by_number, by_place, shown_task
from hf_rlhf.feedback.store import MODEL, RULE, Event, new_uuid
from hf_rlhf.feedback.tasks import shown_mark

TEXTS = ("zero", "one", "two", "three")
VALUES = {
    "pairwise": [{"preferred": 0, "strength": 2}, {"preferred": 1, "strength": 1}, {"preferred": "tie"}],
    "ranking": [{"ranks": [2, 1, 4, 2]}],
    "rating": [{"ratings": {"quality": [1, 5, 3, 2]}}],
}


def task_of(kind):
    return Task(Form(kind), "question", TEXTS[: 2 if kind == "pairwise" else 4])


def given_by(annotator, task, store, value, **changed):
    mark = shown_mark(task.id, annotator, store.salt)
    return {"uuid": new_uuid(), "task": task.id, "shown": mark, "kind": "answer", "value": value, **changed}


@pytest.mark.parametrize("kind", VALUES)
def test_an_answer_by_places_is_about_the_completions_that_stood_there(kind):
    task = task_of(kind)
    order = [1, 0] if kind == "pairwise" else [2, 0, 3, 1]
    for value in VALUES[kind]:
        assert by_place(task, by_number(task, value, order), order) == value
    shown = [completion[0]["content"] for completion in shown_task(task, order)["completions"]]
    assert shown == [TEXTS[number] for number in order]


def test_a_ranking_of_places_is_one_of_numbers():
    assert by_number(task_of("ranking"), {"ranks": [1, 2, 3, 4]}, [2, 0, 3, 1]) == {"ranks": [2, 4, 1, 3]}


def test_the_first_completion_stands_left_half_of_the_time(tmp_path):
    with FeedbackStore(tmp_path / "feedback.db") as store:
        desk = Desk(store)
        tasks = [Task(Form("pairwise"), f"question {number}", ("GOOD", "BAD")) for number in range(100)]
        left = [desk._order(task, f"ann {person}")[0] == 0 for task in tasks for person in range(20)]
    assert abs(sum(left) / len(left) - 0.5) < 0.03


@pytest.mark.parametrize(("settings", "left"), [({}, 3), ({"overlap_of": "all"}, 1)])
def test_what_a_rule_has_answered_is_asked_of_people_unless_the_store_counts_all_kinds(tmp_path, settings, left):
    tasks = [Task(Form("pairwise"), f"question {number}", ("a", "b")) for number in range(3)]
    with FeedbackStore(tmp_path / "feedback.db") as store:
        store.add_tasks(tasks)
        for name, value in settings.items():
            store.set(name, value)
        for number, kind in enumerate((RULE, MODEL)):
            value = {"preferred": 0, "strength": 1}
            store.append(Event(new_uuid(), tasks[number].id, kind, annotator_kind=kind, value=value))
        desk = Desk(store, stop_when_done=True)
        reply = desk.tasks("Ann")
        assert reply["progress"]["open"] == left
        assert tasks[2].id in {task["id"] for task in reply["tasks"]} or left == 3
        assert len(reply["tasks"]) == min(left, 2)
        desk.record("Ann", given_by("Ann", tasks[2], store, {"preferred": 0, "strength": 1}))
        assert desk.finished("Ann") == (left == 1)


def test_a_task_goes_to_one_annotator_until_the_lease_ends(tmp_path):
    now = [1000.0]
    with FeedbackStore(tmp_path / "feedback.db", clock=lambda: now[0]) as store:
        store.add_tasks(Task(Form("pairwise"), f"question {number}", ("a", "b")) for number in range(4))
        desk = Desk(store)
        ids = lambda reply: [task["id"] for task in reply["tasks"]]  # noqa: E731
        ann, ben = ids(desk.tasks("Ann")), ids(desk.tasks("Ben"))
        assert len({*ann, *ben}) == 4
        assert ids(desk.tasks("Ann")) == ann  # whoever comes back gets the same ones
        assert ids(desk.tasks("Cem")) == []
        now[0] += 300
        desk.tasks("Ann")  # an open page asks now and then
        now[0] += 400
        assert set(ids(desk.tasks("Cem"))) == set(ben)


def test_the_desk_closes_when_until_says_so_or_nothing_is_left(tmp_path):
    with FeedbackStore(tmp_path / "feedback.db") as store:
        tasks = [Task(Form("pairwise"), f"question {number}", ("a", "b")) for number in range(3)]
        store.add_tasks(tasks)
        enough = Desk(store, until=lambda: len(store.current()) >= 2)
        patient, done = Desk(store), Desk(store, stop_when_done=True)
        for number, task in enumerate(tasks):
            assert enough.tasks("Ann")["finished"] == (number >= 2)
            assert not done.tasks("Ann")["finished"]
            given = given_by("Ann", task, store, {"preferred": "tie"})
            enough.record("Ann", given)
        assert enough.tasks("Ann")["tasks"] == []
        assert done.tasks("Ann")["finished"]
        assert not patient.tasks("Ann")["finished"]


def test_an_answer_to_what_another_store_has_shown_is_refused(tmp_path):
    tasks = [Task(Form("pairwise"), f"question {number}", ("GOOD", "BAD")) for number in range(4)]
    with FeedbackStore(tmp_path / "old.db") as old, FeedbackStore(tmp_path / "new.db") as new:
        for store in (old, new):
            store.add_tasks(tasks)
        for kind in ("answer", "skip"):
            value = {"preferred": 0, "strength": 1} if kind == "answer" else None
            shown = Desk(old).tasks("Ann")["tasks"][0]
            given = {"uuid": new_uuid(), "task": shown["id"], "shown": shown["shown"], "kind": kind, "value": value}
            for other in (given, {**given, "shown": None}):
                with pytest.raises(Refused, match="another store has shown"):
                    Desk(new).record("Ann", other)
            Desk(old).record("Ann", given)
        assert (len(old.events()), new.events()) == (2, [])
