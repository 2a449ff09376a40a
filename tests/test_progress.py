"""Progress without a terminal: a line every few seconds, with the time that is left."""

from types import SimpleNamespace

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


def test_the_time_left_of_a_resumed_run_counts_its_own_updates(monkeypatch, capsys):
    now, state = [100.0], SimpleNamespace(global_step=80, max_steps=100, is_world_process_zero=True)
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    lines = PlainProgress((("loss", "loss", 1),))
    lines.on_train_begin(None, state, None)
    now[0], state.global_step = 120.0, 90
    lines.on_log(None, state, None, logs={"loss": 0.5})
    assert capsys.readouterr().out == "update 90/100 (20 s, about 20 s left): loss 0.5\n"
