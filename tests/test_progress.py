"""Progress without a terminal: a line every few seconds, with the time that is left."""

import re
import threading
import time
from types import SimpleNamespace

import pytest

from hf_rlhf import progress
from hf_rlhf.progress import PlainProgress, progress_of


def test_lines_come_at_most_every_few_seconds_and_say_what_is_left(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress_of(200, "replies") as advance:
        now[0] += 5
        advance(2)  # of which no one can tell how long the others take
        for _ in range(10):
            now[0] += 3
            advance(10)
    assert capsys.readouterr().out.splitlines() == [
        "replies: 1% (5 s)",
        "replies: 16% (14 s, about 74 s left)",
        "replies: 31% (23 s, about 51 s left)",
        "replies: 46% (32 s, about 38 s left)",
    ]


def test_more_than_was_foretold_is_all_of_it(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress_of(10, "replies") as advance:
        now[0] += 5
        advance(12)
    assert capsys.readouterr().out == "replies: 100% (5 s, about 0 s left)\n"


def test_a_line_comes_also_where_the_work_says_nothing(monkeypatch, capsys):
    monkeypatch.setattr(progress, "FIRST_LINE_SECONDS", 0.0)
    threads = threading.active_count()
    for total, done in ((10, r"0% \(\d+ s\)"), (1, r"\d+ s")):
        with progress_of(total, "replies"):
            time.sleep(1.5)
        assert re.fullmatch(rf"replies: {done}\n", capsys.readouterr().out)
    assert threading.active_count() == threads


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still, at the second in its list."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def state_of(step, **values):
    return SimpleNamespace(global_step=step, is_world_process_zero=True, **{"max_steps": 100} | values)


def test_the_time_left_of_a_resumed_run_counts_its_own_updates(clock, capsys):
    state = state_of(80)
    lines = PlainProgress((("loss", "loss", 1),))
    lines.on_train_begin(None, state, None)
    clock[0], state.global_step = 120.0, 90
    lines.on_step_end(None, state, None)
    lines.on_log(None, state, None, logs={"loss": 0.5})
    assert capsys.readouterr().out == "update 90/100 (20 s, about 20 s left): loss 0.5\n"


def test_training_says_where_it_is_also_between_two_logs(clock, capsys):
    state = state_of(0, max_steps=8)
    lines = PlainProgress(cycle=4)
    lines.remind()  # no training is under way
    lines.on_train_begin(None, state, None)
    for second in range(1, 41):
        clock[0] = 100 + second
        if second % 10 in (7, 8, 9, 0):  # an iteration samples for six seconds and then makes four updates
            state.global_step = min(state.global_step + 1, 8)
            lines.on_step_end(None, state, None)
        lines.remind()
        if state.global_step == 8:
            lines.on_train_end(None, state, None)
    assert capsys.readouterr().out.splitlines() == [
        "update 0/8 (4 s)",
        "update 4/8 (12 s, about 8 s left)",
        "update 8/8 (20 s)",
    ]
