"""Runs killed at random moments end in the bits of a run that was not."""

import pytest
from checkpoint.runs import ON_RANKS, RUNS, in_child, kill_and_resume, outcome


@pytest.mark.parametrize("kind", [kind for kind in RUNS if kind not in ON_RANKS])  # those of ranks: make test-kills
def test_a_few_killed_runs_end_in_the_same_bits(tmp_path, kind):
    assert kill_and_resume(kind, tmp_path, kills=4) == 4


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", RUNS)
def test_fifty_of_fifty_killed_runs_end_in_the_same_bits(tmp_path, kind):
    assert kill_and_resume(kind, tmp_path, kills=50, seed=1) == 50


def test_the_comparison_can_fail(tmp_path):
    train = RUNS["ppo"]
    assert in_child(lambda: train(tmp_path / "one", max_steps=4)) == 0
    assert in_child(lambda: train(tmp_path / "two", max_steps=4, seed=43)) == 0
    one, two = outcome(tmp_path / "one"), outcome(tmp_path / "two")
    assert all(mine != other for mine, other in zip(one, two, strict=True))
