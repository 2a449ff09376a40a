"""The bandit of benchmarks/bandit.py, at one seed: estimators solve it, and the variance of each is measured."""

import sys
from pathlib import Path

import pytest


@pytest.fixture
def bandit(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import bandit

    yield bandit
    sys.modules.pop("bandit")


@pytest.mark.parametrize("estimator", ["leave_one_out", "dae"])
def test_the_word_is_said_within_200_updates_and_the_variance_of_each_gradient_is_measured(bandit, estimator):
    result = bandit.run(estimator, 0)
    assert result.updates is not None
    assert result.updates <= 200
    assert result.probability >= 0.95
    assert result.variances[estimator] > 0
    assert result.variances["reinforce"] > 0
    row = bandit.table([result]).splitlines()[-1]
    assert row.startswith(f"| {estimator} | 1 of 1 | {result.updates} | ")
