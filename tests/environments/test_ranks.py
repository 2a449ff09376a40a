"""Greedy episodes are the same in batches of every size, and on two ranks."""

import json
from pathlib import Path

import pytest
from environments.ranks_script import all_rows, greedy_episodes
from ranks import run_ranks


@pytest.fixture(scope="module")
def alone():
    return [greedy_episodes([row])[0] for row in all_rows()]


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_the_size_of_a_batch_changes_nothing(alone, batch_size):
    assert greedy_episodes(all_rows(), batch_size) == alone


def test_two_ranks_change_nothing(alone, tmp_path):
    run_ranks([Path(__file__).with_name("ranks_script.py"), tmp_path], folder=tmp_path)
    found = [each for rank in range(2) for each in json.loads((tmp_path / f"{rank}.json").read_text(encoding="utf-8"))]
    assert found == alone
