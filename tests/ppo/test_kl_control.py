"""The controller in a closed loop with a simulated policy whose KL falls as the coefficient rises."""

import random

import pytest

from hf_rlhf.ppo.kl_control import AdaptiveKL, FixedKL

TARGET = 6.0  # nats a completion
EPISODES = 64  # an iteration


def true_kls(control, pull, iterations, seed=0):
    """The mean KL at each iteration, `pull / coef`; the controller sees it through the noise of a finite batch."""
    rng = random.Random(seed)
    kls = []
    for _ in range(iterations):
        kls.append(pull / control.coef)
        control.update(kls[-1] * rng.lognormvariate(0, 0.3), EPISODES)
    return kls


@pytest.mark.parametrize("horizon", [10 * EPISODES, EPISODES, EPISODES // 16], ids=["long", "one", "shorter than one"])
@pytest.mark.parametrize("start", [0.1, 10.0], ids=["too low", "too high"])
def test_the_kl_is_held_near_its_target_from_a_start_ten_times_off(start, horizon):
    control = AdaptiveKL(start, TARGET, horizon)
    kls = true_kls(control, pull=TARGET, iterations=1000)  # a coefficient of 1 would be right
    assert kls[0] / TARGET == pytest.approx(1 / start)
    assert all(TARGET / 2 < kl < TARGET * 2 for kl in kls[300:])


def test_the_loop_follows_a_policy_that_pulls_harder():
    control = AdaptiveKL(1.0, TARGET, 10 * EPISODES)
    true_kls(control, pull=TARGET, iterations=100)
    kls = true_kls(control, pull=5 * TARGET, iterations=600)
    assert kls[0] > TARGET * 2
    assert all(TARGET / 2 < kl < TARGET * 2 for kl in kls[300:])


def test_an_iteration_longer_than_the_horizon_moves_the_coefficient_by_a_fifth_at_most():
    control = AdaptiveKL(1.0, TARGET, horizon=EPISODES // 16)
    control.update(100 * TARGET, EPISODES)
    assert control.coef == pytest.approx(1.2)
    control.update(0.0, EPISODES)
    assert control.coef == pytest.approx(1.2 * 0.8)


def test_a_fixed_coefficient_leaves_the_kl_where_it_is():
    assert set(true_kls(FixedKL(0.1), pull=TARGET, iterations=10)) == {10 * TARGET}
