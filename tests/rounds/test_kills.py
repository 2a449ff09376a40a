"""Rounds that are killed in and between steps end in the bits of rounds that were not."""

import os
import signal
import sqlite3
import time

from checkpoint.runs import in_child, outcome, start_child
from rounds.tiny_rounds import DONE, arguments

from hf_rlhf.rounds.run import run_rounds


def answers(folder):
    """Return how many answers the store has, of a run that may be writing."""
    try:
        with sqlite3.connect(f"file:{folder / 'feedback.db'}?mode=ro", uri=True) as connection:
            return connection.execute("SELECT COUNT(*) FROM event").fetchone()[0]
    except sqlite3.Error:
        return 0


MOMENTS = {
    "candidates": lambda run: (run / "round_1/.partial/candidates/train.jsonl").exists(),
    "an answer": lambda run: answers(run) > 5,
    "the reward model": lambda run: any(run.glob("round_1/.partial/reward_model/checkpoint-*")),
    "the policy": lambda run: any(run.glob("round_1/.partial/policy/checkpoint-*")),
    "between steps": lambda run: (run / "round_1/evaluation").exists(),
    "the second policy, saved": lambda run: (run / "round_2/.partial/policy/adapter_model.safetensors").exists(),
}


def killed_when(work, reached):
    """Do `work` in a process that is killed as soon as `reached()`; returns whether it came to that."""
    child = start_child(work)
    while not reached():
        if os.waitpid(child, os.WNOHANG)[0]:
            return False
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1] != 0


def everything(run):
    """Return everything that must be the same bits."""
    texts = {str(file.relative_to(run)): file.read_text(encoding="utf-8") for file in run.rglob("*.jsonl")}
    texts = {name: text for name, text in texts.items() if "metrics" not in name and "samples" not in name}
    assert len(texts) >= 15
    for name in ("rounds.json", "round_2/preferences/conversion.json", "round_2/reward_model/evaluation.json"):
        texts[name] = (run / name).read_text(encoding="utf-8")
    models = [run / f"round_{number}" / name for number in (1, 2) for name in ("reward_model", "policy")]
    return texts, [outcome(model) for model in models]


def test_rounds_killed_in_and_between_steps_end_as_those_that_were_not(done, tmp_path):
    args, errors = arguments(tmp_path, **DONE), tmp_path / "errors.txt"
    run = tmp_path / "rounds"
    met = [killed_when(lambda: run_rounds(*args), lambda at=at: at(run)) for at in MOMENTS.values()]
    assert in_child(lambda: run_rounds(*args), stderr=errors) == 0, errors.read_text()
    assert everything(run) == everything(done)
    assert sum(met) >= len(MOMENTS) - 2  # a busy machine may look too late
    assert not list(run.rglob(".partial")), "something half-made is left"
