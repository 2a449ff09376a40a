"""Kills, full disks and two processes at once lose nothing that the store acknowledged; damage is named."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import feedback_kills
import pytest
from feedback_stores import PAIR, prefer, say

from hf_rlhf.errors import InputError, RunFailed
from hf_rlhf.feedback import Event, FeedbackStore, Form, Task
from hf_rlhf.feedback.store import new_uuid


def pair(number: int, length: int = 0) -> Task:
    return Task(PAIR, f"question {number}{' x' * length}", (f"good {number}", f"bad {number}"))


def test_no_acknowledged_answer_is_lost_or_doubled_over_kills(tmp_path):
    found = feedback_kills.kill_writers(tmp_path / "f.db", kills=6, answers=40, writers=2, seed=1, longest_life=0.4)
    assert (found.lost, found.twice) == (0, 0)
    assert found.kills >= 6
    assert found.acknowledged >= 40


def test_processes_that_make_a_store_at_once_share_it(tmp_path):
    code = (
        "import sys\nfrom hf_rlhf.feedback import *\n"
        "store = FeedbackStore(sys.argv[1])\n"
        "store.add_tasks(Task(Form(), f'q {n}', ('a', 'b')) for n in range(20))\n"
        "while (task := store.next_task(sys.argv[2])) is not None:\n"
        "    store.append(Event(f'{sys.argv[2]}/{task.id}', task.id, sys.argv[2], value={'preferred': 0}))\n"
    )
    file = tmp_path / "f.db"
    crew = [subprocess.Popen([sys.executable, "-c", code, str(file), f"ann {n}"]) for n in range(4)]
    assert [process.wait() for process in crew] == [0] * 4
    with FeedbackStore(file) as store:
        assert len(list(store.tasks())) == 20
        assert len({event.task for event in store.current()}) == len(store.events()) == 20


def test_threads_of_one_store_answer_each_task_once(tmp_path):
    with FeedbackStore(tmp_path / "f.db") as store:
        store.add_tasks(map(pair, range(40)))

        def work(name: str) -> None:
            while (task := store.next_task(name)) is not None:
                store.append(Event(new_uuid(), task.id, name, value={"preferred": 0}))

        crew = [threading.Thread(target=work, args=(f"ann {n}",)) for n in range(4)]
        for thread in crew:
            thread.start()
        for thread in crew:
            thread.join()
        assert len({event.task for event in store.current()}) == len(store.events()) == 40


def test_a_full_disk_is_an_error_and_nothing_is_acknowledged(tmp_path):
    with FeedbackStore(tmp_path / "f.db") as store:
        prefer(store, pair(0), 0)
        pages = store._database.read("PRAGMA page_count")[0][0]
        store._database.read(f"PRAGMA max_page_count = {pages + 3}")
        kept = []

        def fill() -> None:
            for number in range(1, 200):
                kept.append(prefer(store, pair(number, length=200), 0))

        with pytest.raises(RunFailed, match=r"f\.db cannot be read or written \(database or disk is full\)"):
            fill()
        store._database.read("PRAGMA max_page_count = 1000000")
        assert store.events()[1:] == kept
        prefer(store, pair(500), 0)  # room again, and the next answer is kept
    with FeedbackStore(tmp_path / "f.db") as again:
        assert len(again.events()) == len(kept) + 2


def test_a_commit_that_fails_acknowledges_nothing_and_the_next_one_is_its_own(tmp_path):
    with FeedbackStore(tmp_path / "f.db") as store, FeedbackStore(tmp_path / "f.db") as other:
        store.add_tasks([pair(1), pair(2)])
        other._database.read("PRAGMA busy_timeout = 10")
        with (
            store._database.transaction(),
            pytest.raises(RunFailed, match="database is locked"),
        ):
            prefer(other, pair(1), 0)
        prefer(other, pair(2), 0)
        assert [event.task for event in store.events()] == [pair(2).id]


def test_a_torn_or_damaged_file_is_named(tmp_path):
    file = tmp_path / "f.db"
    with FeedbackStore(file) as store:
        for number in range(60):
            prefer(store, pair(number, length=100), 0)
    whole = file.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:100] + b"\xff" * 8000 + whole[8100:], whole[:3000]):
        file.write_bytes(damaged)
        for beside in tmp_path.glob("f.db-*"):
            beside.unlink()
        with pytest.raises(InputError, match=r"f\.db is invalid: it is damaged"):
            FeedbackStore(file)
    file.write_bytes(whole)
    with FeedbackStore(file) as store:
        assert len(store.events()) == 60


def test_a_foreign_database_is_left_as_it_is(tmp_path):
    import sqlite3

    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("CREATE TABLE something (a)")
    other.close()
    before = (tmp_path / "other.db").read_bytes()
    with pytest.raises(InputError, match="no store of feedback"):
        FeedbackStore(tmp_path / "other.db")
    assert (tmp_path / "other.db").read_bytes() == before


def test_a_store_of_a_newer_version_is_refused(tmp_path):
    with FeedbackStore(tmp_path / "f.db") as store:
        store.set("schema_version", "99")
    with pytest.raises(InputError, match=r"it has version 99, .* Install a newer one"):
        FeedbackStore(tmp_path / "f.db")


TEXTS = ("half \ud83d of one", "NUL \x00 here", "emoji 🙂, 漢字, العربية", "\u202e\u200b</script>", r"a written \ud83d")


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_comes_back_as_it_was(tmp_path, text):
    task = Task(Form("correction"), text, (text,), columns={text: text})
    with FeedbackStore(tmp_path / "f.db") as store:
        event = say(store, task, {"text": text}, comment=text)
        assert store.append(event) == event
    with FeedbackStore(tmp_path / "f.db") as again:
        (found,) = again.tasks()
        assert (found.prompt, found.completions, found.columns, found.id) == (text, (text,), {text: text}, task.id)
        assert again.events() == [event]
        assert (event.value, event.comment) == ({"text": text}, text)


def test_the_next_of_ten_thousand_tasks_takes_less_than_five_milliseconds(tmp_path):
    with FeedbackStore(tmp_path / "f.db") as store:
        tasks = [pair(number) for number in range(10_000)]
        store.add_tasks(tasks)
        with store._database.transaction():
            for task in tasks[:6000]:
                for name in ("bob", "cat"):
                    store.append(Event(new_uuid(), task.id, name, value={"preferred": 0}))
        store.next_task("ann", overlap=3)  # which reads the log
        for name, overlap, done in (("ann", 3, 0), ("bob", 3, 6000), ("dan", 2, 6000)):
            times = []
            for number in range(30):
                begun = time.perf_counter()
                task = store.next_task(name, overlap=overlap)
                times.append(time.perf_counter() - begun)
                assert task is not None
                assert task.prompt == f"question {done + number}"
                store.append(Event(new_uuid(), task.id, name, value={"preferred": 0}))
            assert sorted(times)[15] < 0.005


def test_what_was_taken_back_or_answered_elsewhere_is_known_to_the_next_question(tmp_path):
    file = tmp_path / "f.db"
    with FeedbackStore(file) as store, FeedbackStore(file) as other:
        store.add_tasks(map(pair, range(3)))
        assert store.next_task("ann") == pair(0)
        prefer(store, pair(0), 0, "ann")
        assert other.next_task("bob") == pair(1)
        other.append(Event(new_uuid(), pair(1).id, "bob", value={"preferred": 0}))
        assert store.next_task("ann") == pair(2)
        assert (store.progress("ann").answered, store.progress("ann").open) == (1, 1)
        other.undo("bob", new_uuid(), lease_seconds=0)
        assert store.progress("ann").open == 2
        store.add_tasks([Task(PAIR, "urgent", ("a", "b"), priority=5)])
        assert store.next_task("cat").prompt == "urgent"


def test_an_annotator_has_a_name_that_can_be_written(tmp_path):
    with FeedbackStore(tmp_path / "f.db") as store:
        store.add_tasks([pair(1)])
        for name in ("", "  ", "half \ud800", "two\nlines", "x" * 201):
            with pytest.raises(ValueError, match="an annotator's name is"):
                store.append(Event(new_uuid(), pair(1).id, name, value={"preferred": 0}))
        assert store.events() == []


def test_an_import_of_the_store_needs_no_torch():
    code = "import sys, hf_rlhf.feedback.store, hf_rlhf.feedback.agreement; print(json.dumps(sorted(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", f"import json; {code}"], capture_output=True, text=True, check=True)
    assert "torch" not in json.loads(found.stdout)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="it cannot be opened"):
        FeedbackStore(Path(tmp_path) / "file" / "f.db")
