"""The quickstart with a person: the page asks, and the answers are the preferences."""

import threading
import time

import pytest

pytest.importorskip("uvicorn", reason="the extra label is not installed")

from hf_rlhf.cli import main
from hf_rlhf.errors import InputError
from hf_rlhf.feedback import Event, FeedbackStore
from hf_rlhf.feedback.forms import TIE
from hf_rlhf.feedback.store import new_uuid
from hf_rlhf.quickstart.arguments import QuickstartArguments
from hf_rlhf.quickstart.person import ME, STORE_FILE, ask_person
from hf_rlhf.records import read_json_lines, write_json_lines

ARGS = {"annotator": ME, "judgments": 20, "open": False}


@pytest.fixture
def root(tmp_path):
    """A quickstart after its first stage: of each message's three replies one is GOOD."""
    (tmp_path / "candidates").mkdir()
    for split, count in (("train", 20), ("test", 6)):
        rows = [
            {"prompt": f"{split} {number}", "completion": word and f"{word} {number}", "finished": True}
            for number in range(count)
            for word in ("GOOD", "bad", "bad", "")
        ]
        write_json_lines(tmp_path / "candidates" / f"{split}.jsonl", rows)
    return tmp_path


def answering(root, choose):
    """Answer in a thread of its own, as the page does, until nothing is left."""

    def run():
        while not (root / STORE_FILE).exists():
            time.sleep(0.05)
        with FeedbackStore(root / STORE_FILE) as store:
            while next(iter(store.tasks()), None) is None:
                time.sleep(0.05)
            while (task := store.next_task(ME)) is not None:
                store.append(Event(new_uuid(), task.id, ME, value=choose(task)))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def good(task):
    return {"preferred": 0 if "GOOD" in task.texts[0] else 1}


def test_what_the_person_prefers_is_chosen_and_held_out_messages_stay_apart(root, tmp_path):
    (tmp_path / "stage").mkdir()
    thread = answering(root, good)
    ask_person(QuickstartArguments(output_dir=str(root), **ARGS), root, tmp_path / "stage")
    thread.join(10)
    train, test = (read_json_lines(tmp_path / "stage" / f"{split}.jsonl") for split in ("train", "test"))
    assert (len(train), len(test)) == (16, 4)
    for row in [*train, *test]:
        assert set(row) == {"prompt", "chosen", "rejected"}
        assert row["chosen"][0]["content"].startswith("GOOD")
        assert row["rejected"][0]["content"].startswith("bad")
    assert {row["prompt"][-1]["content"].split()[0] for row in train} == {"train"}
    assert {row["prompt"][-1]["content"].split()[0] for row in test} == {"test"}


def test_a_run_that_was_stopped_asks_nothing_twice(root, tmp_path):
    (tmp_path / "stage").mkdir()
    args = QuickstartArguments(output_dir=str(root), **ARGS)
    answering(root, good)
    ask_person(args, root, tmp_path / "stage")
    before = (tmp_path / "stage" / "train.jsonl").read_text()
    ask_person(args, root, tmp_path / "stage")  # it returns at once
    assert (tmp_path / "stage" / "train.jsonl").read_text() == before


def test_too_few_preferences_are_an_error_that_says_what_to_do(root, tmp_path):
    (tmp_path / "stage").mkdir()
    answering(root, lambda task: {"preferred": TIE})
    with pytest.raises(InputError, match="0 of 16 pairs of the train messages have a preference"):
        ask_person(QuickstartArguments(output_dir=str(root), **ARGS), root, tmp_path / "stage")


def test_an_annotator_that_does_not_exist_is_an_error(tmp_path, capsys):
    assert main(["quickstart", "--output_dir", str(tmp_path), "--annotator", "you"]) == 2
    assert "annotator=you is invalid" in capsys.readouterr().err
