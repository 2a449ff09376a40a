"""Progress without a terminal: a line every few seconds, with the time that is left."""

from hf_rlhf import progress
from hf_rlhf.progress import progress_of


def test_lines_come_at_most_every_few_seconds_and_say_what_is_left(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress_of(100, "replies") as advance:
        for _ in range(10):
            now[0] += 3
            advance(5)
    assert capsys.readouterr().out.splitlines() == [
        "replies: 15% (9 s, about 51 s left)",
        "replies: 30% (18 s, about 42 s left)",
        "replies: 45% (27 s, about 33 s left)",
    ]
