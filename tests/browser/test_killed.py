"""A server that is killed keeps what it has acknowledged, and the page resumes where it was."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from hf_rlhf.feedback import FeedbackStore, Form, Task

SCRIPT = Path(__file__).parents[1] / "label_server.py"
EACH = 7


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_servers_lose_no_answer_and_keep_none_twice(tmp_path, browser, kills):
    file, total = tmp_path / "feedback.db", kills * EACH + 1
    with FeedbackStore(file) as store:
        store.add_tasks(Task(Form("pairwise"), f"question {number}", ("a", "b")) for number in range(total))
    command = [sys.executable, str(SCRIPT), str(file), str(free_port())]
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(15_000)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as servers:
        for kill in range(kills):
            servers.stdin.write("start\n")
            servers.stdin.flush()
            process, address = servers.stdout.readline().split()
            page.goto(address)
            if kill == 0:
                page.fill("input[name=name]", "Ann")
                page.keyboard.press("Enter")
            for answer in range(EACH):
                done = kill * EACH + answer
                page.wait_for_selector(f"#progress-words:has-text('{done} of {total}')")
                page.wait_for_selector(f".prompt:has-text('question {done}')")
                page.wait_for_timeout(160)
                page.keyboard.press("1")
                page.wait_for_selector("#status:has-text('Saved')")
            os.kill(int(process), signal.SIGKILL)
            page.evaluate("document.querySelector('#status').textContent = ''")
        servers.stdin.close()
    context.close()
    with FeedbackStore(file) as store:
        events = store.events()
    assert len(events) == kills * EACH
    assert len({event.task for event in events}) == kills * EACH


def test_an_answer_that_was_given_while_the_server_was_down_is_sent_to_the_next_one(tmp_path, browser):
    file = tmp_path / "feedback.db"
    with FeedbackStore(file) as store:
        store.add_tasks(Task(Form("pairwise"), f"question {number}", ("a", "b")) for number in range(3))
    command = [sys.executable, str(SCRIPT), str(file), str(free_port())]
    context = browser.new_context()
    page = context.new_page()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as servers:
        for start in range(2):
            servers.stdin.write("start\n")
            servers.stdin.flush()
            process, address = servers.stdout.readline().split()
            page.goto(address)
            if start == 0:
                page.fill("input[name=name]", "Ann")
                page.keyboard.press("Enter")
                page.wait_for_selector(".reply")
                os.kill(int(process), signal.SIGKILL)
                page.wait_for_timeout(300)
                page.keyboard.press("1")
                page.wait_for_selector("#status:has-text('1 answer waits here')")
            else:
                page.wait_for_selector("#status:has-text('Saved')")
                os.kill(int(process), signal.SIGKILL)
        servers.stdin.close()
    context.close()
    with FeedbackStore(file) as store:
        assert len(store.events()) == 1
