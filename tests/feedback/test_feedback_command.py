"""`hf-rlhf feedback` carries answers from a file to rows, a page and a dataset, and refuses what it cannot use."""

import json
import subprocess
import sys

import pytest
from fake_hub import FakeHub, environment_for
from feedback_stores import FIXED, PAIR, prefer, read_as, reply, say, user
from pages import HOSTILE, Page
from tiny import make_tokenizer

from hf_rlhf.cli.commands import main
from hf_rlhf.data.held_out import is_held_out
from hf_rlhf.feedback import FeedbackStore, Task
from hf_rlhf.records import read_json_lines


@pytest.fixture
def file(tmp_path):
    with FeedbackStore(tmp_path / "f.db") as store:
        for number in range(20):
            task = Task(PAIR, user(f"is it {number} ?"), (reply("yes"), reply("no")), sources=("small", "big"))
            for name in ("ann", HOSTILE):
                prefer(store, task, 0, name)
        say(store, Task(FIXED, user("hello"), (reply("bad"),)), {"text": "good"}, "ann", comment="private")
    return tmp_path / "f.db"


def test_rows_become_tasks_and_events_come_home(tmp_path, capsys):
    rows = [{"prompt": f"q {n}", "completions": ["a", "b"]} for n in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("one.db", "two.db"):
        assert main(["feedback", "import", str(tmp_path / name), "--dataset_name", str(tmp_path / "rows.jsonl")]) == 0
    with FeedbackStore(tmp_path / "one.db") as store:
        for task in store.tasks():
            prefer(store, task, 0)
    assert main(["feedback", "export", str(tmp_path / "one.db"), "--output_dir", str(tmp_path / "out")]) == 0
    events = str(tmp_path / "out" / "events.jsonl")
    assert main(["feedback", "import", str(tmp_path / "two.db"), "--dataset_name", events]) == 0
    assert "3 new answers" in capsys.readouterr().out
    with FeedbackStore(tmp_path / "two.db") as store:
        assert len(store.current()) == 3


def test_an_export_holds_out_prompts_and_is_read_by_reward(file, tmp_path):
    out = tmp_path / "out"
    assert main(["feedback", "export", str(file), "--output_dir", str(out), "--eval_fraction", "0.3"]) == 0
    train, held = (read_json_lines(out / f"preferences{ending}.jsonl") for ending in ("", "_eval"))
    assert len(train) + len(held) == 21
    assert [is_held_out(row["prompt"], 0.3) for row in train + held] == [False] * len(train) + [True] * len(held)
    assert held
    assert len(read_as("reward", train, tmp_path, make_tokenizer()).dataset) == len(train)
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["files"]["preferences.jsonl"] == len(train)
    assert sorted(path.name for path in out.iterdir()) == sorted([*report["files"], "events.jsonl", "report.json"])


def test_a_second_export_removes_the_files_that_have_no_rows_now(file, tmp_path):
    out = tmp_path / "out"
    assert main(["feedback", "export", str(file), "--output_dir", str(out)]) == 0
    assert (out / "sft.jsonl").is_file()
    assert main(["feedback", "export", str(file), "--output_dir", str(out), "--exclude_annotators", "ann"]) == 0
    assert not (out / "sft.jsonl").exists()


def test_an_anonymous_export_names_nobody(file, tmp_path):
    out = tmp_path / "out"
    assert main(["feedback", "export", str(file), "--output_dir", str(out), "--anonymous", "true"]) == 0
    text = "".join(path.read_text(encoding="utf-8") for path in out.iterdir())
    assert '"ann"' not in text
    assert "private" not in text
    assert "person 1" in text
    assert "big" in text  # the names of models stay


def test_the_report_is_a_page_that_escapes_names(file, tmp_path, capsys):
    assert main(["feedback", "report", str(file), "--output_dir", str(tmp_path)]) == 0
    assert "two of them agree on 100%" in capsys.readouterr().out
    page = Page((tmp_path / "agreement.html").read_text(encoding="utf-8"))
    assert "script" not in page.tags
    assert HOSTILE in page.text
    assert not [value for name, value in page.attributes if name in ("src", "href")]


def test_a_push_sends_the_rows_with_a_card_and_no_names(file, tmp_path):
    assert main(["feedback", "export", str(file), "--output_dir", str(tmp_path / "out"), "--to", "argilla"]) == 0
    hub = FakeHub()
    import threading

    threading.Thread(target=hub.serve_forever, daemon=True).start()
    command = [sys.executable, "-m", "hf_rlhf.cli", "feedback", "push", str(file), "--hub_dataset_id", "someone/taste"]
    command += ["--output_dir", str(tmp_path / "out"), "--eval_fraction", "0.3", "--license", "cc0-1.0"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment_for(hub, tmp_path), check=False)
    hub.shutdown()
    assert done.returncode == 0, done.stderr
    assert set(hub.files) == {"README.md", "report.json", "preferences.jsonl", "preferences_eval.jsonl", "sft.jsonl"}
    card = hub.files["README.md"].decode()
    assert "config_name: preferences" in card
    assert "path: preferences_eval.jsonl" in card
    assert "license: cc0-1.0" in card
    assert b'"ann"' not in b"".join(hub.files.values())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["export", "none.db"], "no such file"),
        (["import", "f.db"], "dataset_name is missing"),
        (["import", "f.db", "--dataset_name", "x", "--format", "xml"], "format=xml is invalid"),
        (["export", "f.db", "--margins", "3,2,1"], "margins="),
        (["export", "f.db", "--eval_fraction", "1"], "eval_fraction=1.0 is invalid"),
        (["export", "f.db", "--to", "argilla", "--anonymous", "true"], "anonymous is invalid with to=argilla"),
        (["push", "f.db"], "hub_dataset_id is missing"),
        (["reprot"], "unknown action 'reprot'. Did you mean 'report'?"),
        ([], "the action is missing"),
    ],
)
def test_what_is_wrong_is_one_message_and_exit_status_two(file, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(file.parent)
    assert main(["feedback", *flags]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in file.parent.iterdir() if not path.name.startswith("f.db")] == []


def test_a_folder_with_other_files_of_these_names_is_left_alone(file, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sft.jsonl").write_text("mine")
    assert main(["feedback", "export", str(file), "--output_dir", str(tmp_path / "out")]) == 2
    assert "holds sft.jsonl" in capsys.readouterr().err
    assert (tmp_path / "out" / "sft.jsonl").read_text() == "mine"
