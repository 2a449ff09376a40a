"""Answers that a person gives in the browser are what the store has."""

import re

from hf_rlhf.feedback import FeedbackStore, Form, Task
from hf_rlhf.feedback.page import Desk, Server
from hf_rlhf.feedback.store import ANSWER, SKIP

PAIR = Form("pairwise")


def pairs(count):
    return [Task(PAIR, f"question {number}", (f"good {number}", f"bad {number}")) for number in range(count)]


def test_the_reply_that_a_person_chose_is_the_one_that_is_kept_whatever_the_order(store, labeller):
    store.add_tasks(pairs(12))
    ann = labeller()
    for _ in range(12):
        left = ann.replies[0]
        ann.press("1" if left.startswith("good") else "0")
    ann.wait_saved()
    events = store.current()
    assert [event.value for event in events] == [{"preferred": 0, "strength": 3}] * 12
    assert {tuple(event.shown_order) for event in events} == {(0, 1), (1, 0)}
    assert not ann.complaints


def test_a_reload_keeps_the_task_and_its_order(store, labeller):
    store.add_tasks(pairs(3))
    ann = labeller()
    ann.press("1")
    ann.wait_saved()
    before = ann.replies
    ann.page.reload()
    ann.page.wait_for_selector(".reply")
    assert ann.replies == before
    assert re.match("1 of 3 done", ann.page.inner_text("#progress-words"))


def test_a_double_click_is_one_answer(store, labeller):
    store.add_tasks(pairs(3))
    ann = labeller()
    ann.page.wait_for_timeout(200)
    ann.page.get_by_role("button", name="Tie").dblclick()
    ann.page.wait_for_timeout(300)
    ann.wait_saved()
    assert [event.value for event in store.events()] == [{"preferred": "tie"}]


def test_an_answer_whose_reply_is_lost_is_sent_again_and_kept_once(store, labeller):
    store.add_tasks(pairs(3))
    ann = labeller()
    lost = []

    def lose(route):
        if len(lost) < 2:
            lost.append(route.fetch())  # the server has it, and the page does not hear so
            route.abort()
        else:
            route.continue_()

    ann.page.route("**/api/events", lose)
    ann.press("2")
    ann.page.wait_for_selector("#status:has-text('No connection')")
    ann.wait_saved()
    assert "Saved" in ann.status
    assert len(lost) == 2
    assert len(store.events()) == 1


def test_undo_brings_the_task_back_and_the_first_answer_stays_in_the_log_alone(store, labeller):
    store.add_tasks(pairs(4))
    ann = labeller()
    shown = ann.replies
    ann.press("1")
    ann.press("s")
    ann.press("u")
    ann.press("u")
    assert ann.replies == shown
    assert ann.page.locator("button.before").text_content().startswith("A is much better")
    ann.press("0")
    ann.wait_saved()
    kinds = [event.kind for event in store.events()]
    assert kinds == [ANSWER, SKIP, "undo", "undo", ANSWER]
    (kept,) = store.current()
    assert kept.value["preferred"] == kept.shown_order[1]


def test_an_answer_that_waits_for_another_store_is_dropped_and_the_page_says_so(tmp_path, store, labeller):
    with FeedbackStore(tmp_path / "new.db") as new, Server(Desk(store), port=0) as old:
        for each in (store, new):
            each.add_tasks(pairs(3))
        ann = labeller(old)
        ann.page.route("**/api/events", lambda route: route.abort())
        ann.press("1")
        ann.page.wait_for_selector("#status:has-text('1 answer waits here')")
        old.__exit__()
        with Server(Desk(new), port=old.port) as server:
            ann.page.unroute("**/api/events")
            ann.page.goto(server.address)
            ann.page.wait_for_selector("#status:has-text('Not saved: This answer is about a task that another store')")
            ann.page.wait_for_selector(".reply")
            assert ann.page.evaluate("Object.keys(localStorage).filter((key) => key.includes('answer'))") == []
        assert (store.events(), new.events()) == ([], [])


def test_keys_answer_and_undo_at_an_address_that_is_no_secure_context(store, labeller):
    store.add_tasks(pairs(2))
    ann = labeller()
    ann.page.add_init_script("delete Crypto.prototype.randomUUID")  # as at http://host
    ann.page.reload()
    ann.page.wait_for_selector(".reply")
    ann.press("1")
    ann.press("u")
    ann.wait_saved()
    assert [event.kind for event in store.events()] == [ANSWER, "undo"]
    assert not ann.complaints


def test_undo_after_a_lost_reply_takes_back_one_answer(store, labeller):
    store.add_tasks(pairs(4))
    ann = labeller()
    ann.press("1")
    shown = ann.replies
    ann.press("s")
    ann.wait_saved()
    ann.page.route("**/api/undo", lambda route: (route.fetch(), route.abort()), times=1)
    ann.page.wait_for_timeout(160)
    ann.page.keyboard.press("u")
    ann.page.wait_for_selector("#status:has-text('Press undo again')")
    ann.press("u")
    assert ann.replies == shown
    assert [event.kind for event in store.events()] == [ANSWER, SKIP, "undo"]
    ann.press("2")
    ann.wait_saved()
    ann.press("u")
    ann.page.wait_for_selector("#status:has-text('Taken back')")
    assert [event.kind for event in store.events()][3:] == [ANSWER, "undo"]


def test_a_full_disk_is_named_and_the_answer_is_saved_when_there_is_room_again(store, labeller, capfd):
    store.add_tasks(pairs(4))
    ann = labeller()
    ann.press("1")
    ann.wait_saved()
    pages = store._database.read("PRAGMA page_count")[0][0]
    store._database.read(f"PRAGMA max_page_count = {pages}")
    ann.page.keyboard.press("c")
    ann.page.fill("dialog textarea", "x" * 9000)  # more than the free space of the last page
    ann.page.keyboard.press("Control+Enter")
    ann.press("2")
    ann.page.wait_for_selector("#status:has-text('its disk is full')")
    assert "1 answer waits here, and will be sent again" in ann.status
    assert "cannot be read or written (database or disk is full)" in capfd.readouterr().err
    assert len(store.events()) == 1
    ann.page.reload()  # the answer is kept in the browser
    ann.page.wait_for_selector("#status:has-text('its disk is full')")
    store._database.read("PRAGMA max_page_count = 1000000")
    ann.wait_saved()
    ann.page.wait_for_selector(".reply")
    assert [event.comment for event in store.events()] == [None, "x" * 9000]
