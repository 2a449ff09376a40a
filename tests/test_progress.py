"""Progress without a terminal: a line every few seconds, with the time that is left."""

from hf_rlhf import progress
from hf_rlhf.progress import progress_of


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
