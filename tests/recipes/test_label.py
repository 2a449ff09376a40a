"""`hf-rlhf label`: flags, the way it ends, and the Space that it writes."""

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from urllib.parse import urlsplit

import pytest

pytest.importorskip("uvicorn", reason="the extra label is not installed")

from hf_rlhf.cli import main
from hf_rlhf.feedback import FeedbackStore, Form, Task
from hf_rlhf.feedback.store import new_uuid
from hf_rlhf.recipes.label import label

ROWS = [
    {"prompt": "What is 2 + 2?", "completions": ["4", "5"], "sources": ["model-x", "model-y"]},
    {"prompt": "And 3 + 3?", "completions": ["6", "7"], "gold": {"preferred": 0}},
]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--form", "pairvise"], "form=pairvise is invalid"),
        (["--form", "nothere.yaml"], "cannot be read"),
        (["--guidelines", "nothere.md"], "guidelines=nothere.md is invalid"),
        (["--overlap", "0"], "overlap=0 is invalid"),
        (["--port", "70000"], "port=70000 is invalid"),
        (["--host", "no.such.host.invalid"], "host=no.such.host.invalid is invalid"),
        (["--annotator", "\x07"], "annotator="),
        (["--form", "rating"], None),
    ],
)
def test_wrong_flags_are_one_message(tmp_path, write_rows, capsys, flags, message):
    store = tmp_path / "feedback.db"
    rows = write_rows(ROWS if message else [{"prompt": "x"}])
    assert main(["label", "--dataset_name", rows, "--store", str(store), "--port", "0", *flags]) == 2
    error = capsys.readouterr().err
    assert error.count("error:") == 1
    assert (message or "row 0") in error


def test_a_store_that_is_not_there_is_an_error_without_rows(tmp_path, capsys):
    assert main(["label", "--store", str(tmp_path / "feedback.db")]) == 2
    assert "no such file" in capsys.readouterr().err
    assert not (tmp_path / "feedback.db").exists()


def ask(address, path, content=None, cookies=""):
    place = urlsplit(address)
    connection = http.client.HTTPConnection(place.hostname, place.port, timeout=10)
    headers = {"Cookie": cookies, "Origin": f"http://{place.netloc}", "Content-Type": "application/json"}
    connection.request(
        "GET" if content is None else "POST", path, None if content is None else json.dumps(content), headers
    )
    response = connection.getresponse()
    found = response.headers.get_all("set-cookie") or []
    return response.status, response.read().decode(), "; ".join(each.split(";")[0] for each in found)


def tie(task):
    value = {"preferred": "tie"}
    return {"uuid": new_uuid(), "task": task["id"], "shown": task["shown"], "kind": "answer", "value": value}


def answer_all(address):
    _, _, cookies = ask(address, address[address.index("/?") :])
    while tasks := (reply := json.loads(ask(address, "/api/tasks", {}, cookies)[1]))["tasks"]:
        given = tie(tasks[0])
        reply = json.loads(ask(address, "/api/events", given, cookies)[1])
        if reply["finished"]:
            break
    return reply


def test_python_code_serves_the_page_until_it_has_enough(tmp_path, capsys):
    with FeedbackStore(tmp_path / "feedback.db") as store:
        store.add_tasks(Task(Form("pairwise"), f"question {number}", ("a", "b")) for number in range(9))
        options = {"annotator": "Ann", "port": 0, "until": lambda: len(store.current()) >= 4}
        serving = threading.Thread(target=label, args=(store,), kwargs=options)
        serving.start()
        address = ""
        while not address:
            time.sleep(0.05)
            words = capsys.readouterr().out.split()
            address = next((each for each in words if each.startswith("http://")), "")
        assert answer_all(address)["finished"]
        serving.join(timeout=20)
        assert not serving.is_alive()
        assert len(store.events()) == 4


def test_ctrl_c_ends_with_130_and_says_where_the_answers_are(tmp_path, write_rows):
    store = tmp_path / "feedback.db"
    command = [sys.executable, "-m", "hf_rlhf.cli", "label", write_rows(ROWS), "--store", str(store), "--port", "0"]
    process = subprocess.Popen(
        [*command, "--annotator", "Ann"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    address = next(line.strip() for line in process.stdout if "http://" in line)
    answer_all(address)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "2 answers: saved in" in errors
    assert f"hf-rlhf feedback export --store {store}" in errors
    assert "Traceback" not in errors


def test_a_space_runs_from_its_folder_alone_and_asks_for_its_password(tmp_path, write_rows, capsys):
    folder = tmp_path / "space"
    guidelines = tmp_path / "guide.md"
    guidelines.write_text("Truth first.", encoding="utf-8")
    flags = ["--space", str(folder), "--guidelines", str(guidelines), "--store", str(tmp_path / "feedback.db")]
    assert main(["label", "--dataset_name", write_rows(ROWS), *flags]) == 0
    assert main(["label", "--dataset_name", write_rows(ROWS), *flags]) == 2
    assert "there are files in it" in capsys.readouterr().err
    assert not (tmp_path / "feedback.db").exists()
    assert b"model-x" not in (folder / "tasks.db").read_bytes()
    assert (folder / "README.md").read_text(encoding="utf-8").startswith("---\ntitle: ")
    assert 'CMD ["python", "-m", "hf_rlhf.feedback.page.space_app"]' in (folder / "Dockerfile").read_text("utf-8")
    where = (
        "import hf_rlhf, sys, hf_rlhf.feedback.page.space_app as app; print(hf_rlhf.__file__, 'torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(folder), "LABEL_DATA": str(tmp_path / "data"), "PORT": "0"}
    found = subprocess.run([sys.executable, "-c", where], cwd=folder, env=environment, capture_output=True, text=True)
    assert found.stdout.split() == [str(folder / "hf_rlhf" / "__init__.py"), "False"], found.stderr
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment |= {"PORT": str(port), "LABEL_PASSWORD": "secret"}
    command = [sys.executable, "-m", "hf_rlhf.feedback.page.space_app"]
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    address = f"http://127.0.0.1:{port}/"
    for _ in range(200):
        try:
            status, _, _ = ask(address, "/")
            break
        except OSError:
            time.sleep(0.1)
    try:
        assert status == 200
        assert ask(address, "/api/tasks", {})[0] == 403
        assert ask(address, "/api/session", {"name": "Ann", "password": "guess"})[0] == 403
        status, _, cookies = ask(address, "/api/session", {"name": "Ann", "password": "secret"})
        assert status == 200
        assert json.loads(ask(address, "/api/session", cookies=cookies)[1])["guidelines"] == "Truth first."
        task = json.loads(ask(address, "/api/tasks", {}, cookies)[1])["tasks"][0]
        assert ask(address, "/api/events", tie(task), cookies)[0] == 200
        assert ask(address, "/api/agreement", cookies=cookies)[0] == 200
    finally:
        process.terminate()
        ended = process.wait(timeout=20)
    assert ended == 0, "a Space that is stopped ends by itself, so that the last answers are pushed before"
    with FeedbackStore(tmp_path / "data" / "feedback.db", create=False) as store:
        assert len(store.events()) == 1


def test_a_space_pushes_before_it_stops_its_scheduler(tmp_path, monkeypatch):
    import huggingface_hub

    from hf_rlhf.feedback.page import space_app

    calls = []

    class Scheduler:
        """Has what `CommitScheduler` does at its end: after `stop`, `trigger` pushes nothing."""

        def __init__(self, **_):
            self.lock = threading.Lock()

        def stop(self):
            calls.append("stop")

        def trigger(self):
            calls.append("trigger")
            return self

        def result(self, timeout):
            calls.append("result")

    (tmp_path / "pushed").mkdir()
    monkeypatch.setattr(huggingface_hub, "CommitScheduler", Scheduler)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path / "pushed"))
    with FeedbackStore(tmp_path / "f.db") as store, space_app._pushed(store, tmp_path, "someone/answers", "token"):
        assert calls == []
    assert calls == ["trigger", "result", "stop"]
