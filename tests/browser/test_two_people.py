"""Several people answer at once, each in a browser of their own."""

import pytest

from hf_rlhf.feedback import Form, Task
from hf_rlhf.feedback.agreement import report_of
from hf_rlhf.feedback.store import new_uuid
from hf_rlhf.feedback.tasks import shown_mark

PAIR = Form("pairwise")


def pairs(count):
    return [Task(PAIR, f"question {number}", (f"good {number}", f"bad {number}")) for number in range(count)]


@pytest.mark.parametrize(("overlap", "answers"), [(1, 6), (2, 12)])
def test_each_task_is_answered_by_as_many_people_as_asked(store, labeller, serve, overlap, answers):
    store.add_tasks(pairs(6))
    store.set("overlap", str(overlap))
    server = serve()
    people = [labeller(server, name) for name in ("Ann", "Ben")]
    for _ in range(6):
        for person in people:
            if person.page.locator(".reply").count():
                person.press("1")
    for person in people:
        person.wait_saved()
    events = store.current()
    assert len(events) == answers
    by_task = {task.id: {event.annotator for event in events if event.task == task.id} for task in pairs(6)}
    assert {len(names) for names in by_task.values()} == {overlap}


def test_a_task_that_somebody_else_answered_after_a_pause_leaves_the_page(store, labeller, serve):
    now = [1_800_000_000.0]
    store.clock = lambda: now[0]
    store.add_tasks(pairs(2))
    server = serve()
    ann = labeller(server, "Ann")
    ben = labeller(server, "Ben")
    assert "Others have the last 2 tasks" in ben.page.inner_text("main")
    now[0] += 700  # Ann had lunch
    ben.page.reload()
    ben.page.wait_for_selector(".reply")
    for _ in range(2):
        ben.press("1")
    ben.wait_saved()
    ann.page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    ann.page.wait_for_selector("h1:has-text('Thank you')")
    assert len(store.events()) == 2


def test_whoever_always_takes_the_left_reply_is_found(store, labeller, serve):
    tasks = pairs(40)
    store.add_tasks(tasks)
    store.set("overlap", "2")
    store.set("salt", "fixed")
    server = serve()
    for task in tasks:
        order = server.desk._order(task, "Fair")
        value = {"preferred": order.index(0), "strength": 1}
        mark = shown_mark(task.id, "Fair", store.salt)
        given = {"uuid": new_uuid(), "task": task.id, "shown": mark, "kind": "answer", "value": value}
        server.desk.record("Fair", given)
    lena = labeller(server, "Lena")
    for _ in tasks:
        lena.press("2")
    lena.wait_saved()
    biases = {each["name"]: each["position"] for each in report_of(store)["annotators"]}
    assert (biases["Lena"]["share"], biases["Lena"]["flagged"]) == (1.0, True)
    assert not biases["Fair"]["flagged"]
    lena.page.click("#open-agreement")
    lena.page.wait_for_selector("table")
    row = lena.page.locator("tr", has_text="Lena").last.inner_text()
    assert "100 %" in row
    assert "⚠" in row
    assert "⚠" not in lena.page.locator("tr", has_text="Fair").last.inner_text()
