"""The win rate at equal length: planted judges, a value worked by hand, and what cannot be told."""

import math

import numpy as np
import pytest

from hf_rlhf.evaluation.length_control import PRIOR_STD, length_controlled_win_rate


def planted(n=300, seed=0, shift=40.0):
    """Lengths of a policy that writes longer completions in five of six pairs, and of its baseline."""
    rng = np.random.default_rng(seed)
    baseline = rng.integers(100, 200, n)
    return rng, baseline + rng.normal(shift, 40, n).round().astype(int), baseline


@pytest.mark.parametrize("seed", range(5))
def test_a_judge_who_takes_the_longer_one_finds_no_better_policy(seed):
    _, policy, baseline = planted(seed=seed)
    preferences = [0.5 if a == b else float(a > b) for a, b in zip(policy, baseline, strict=True)]
    found = length_controlled_win_rate(preferences, policy, baseline)
    assert np.mean(preferences) > 0.78
    assert found.rate == pytest.approx(0.5, abs=0.13)
    assert found.low < 0.5 < found.high
    assert found.length_weight > 5


@pytest.mark.parametrize("seed", range(5))
def test_a_policy_that_is_better_stays_better(seed):
    rng, policy, baseline = planted(seed=seed)
    x = np.tanh((policy - baseline) / (policy - baseline).std())
    better = rng.random(len(x)) < 1 / (1 + np.exp(-(1.0 + 1.5 * x)))  # 73% at equal length
    found = length_controlled_win_rate(better.astype(float), policy, baseline)
    assert better.mean() > found.rate > 0.55
    assert found.low < 0.731 < found.high


def test_a_judge_who_ignores_length_gives_the_raw_rate():
    policy, baseline = [10, 12] * 20, [12, 10] * 20
    preferences = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0] * 5
    found = length_controlled_win_rate(preferences, policy, baseline)
    assert found.length_weight == pytest.approx(0.0, abs=1e-6)
    # With f = 0 the maximum solves 30 - 40 sigmoid(t) = t / 25.
    t = math.log(found.rate / (1 - found.rate))
    assert 30 - 40 * found.rate == pytest.approx(t / PRIOR_STD**2, abs=1e-6)
    assert found.rate == pytest.approx(0.75, abs=0.002)


def test_swapping_both_sides_gives_the_complement():
    rng, policy, baseline = planted(80)
    preferences = (rng.random(80) < 0.7).astype(float).tolist()
    there = length_controlled_win_rate(preferences, policy, baseline)
    back = length_controlled_win_rate([1 - each for each in preferences], baseline, policy)
    assert there.rate == pytest.approx(1 - back.rate)
    assert there.longer == pytest.approx(1 - back.longer)


def test_the_interval_is_the_same_each_time():
    rng, policy, baseline = planted(60)
    preferences = (rng.random(60) < 0.6).astype(float).tolist()
    one, other = (length_controlled_win_rate(preferences, policy, baseline, seed=3) for _ in range(2))
    assert one == other
    assert 0 < one.low < one.rate < one.high < 1


def test_lengths_that_do_not_overlap_tell_nothing_and_the_reason_is_said():
    found = length_controlled_win_rate([1.0] * 50, range(200, 250), [10] * 50)
    assert (found.rate, found.low, found.high) == (None, None, None)
    assert "longer in 100% of 50 pairs" in found.reason
    equal = length_controlled_win_rate([1.0, 0.0] * 10, [7] * 20, [7] * 20)
    assert equal.rate == pytest.approx(0.5)
    assert equal.longer == 0.5
    with pytest.raises(ValueError, match="nothing was compared"):
        length_controlled_win_rate([], [], [])


@pytest.mark.parametrize("n", [10, 20])
def test_one_side_that_always_wins_is_no_certainty(n):
    found = length_controlled_win_rate([1.0] * n, [10, 12] * (n // 2), [12, 10] * (n // 2))
    assert found.rate > 0.9
    assert found.high > 0.99
    assert found.low < (0.75 if n == 10 else 0.9)  # Wilson says 0.72 and 0.84


def test_too_few_pairs_are_named_as_such():
    found = length_controlled_win_rate([1.0] * 6, [10, 12] * 3, [12, 10] * 3)
    assert found.rate is None
    assert found.reason.startswith("there are 6 pairs, too few")
