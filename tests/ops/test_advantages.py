import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import tensor

from hf_rlhf.ops.advantages import gae, last_counted, monte_carlo_returns, per_token_rewards

NAN = math.nan
REWARDS, VALUES = tensor([[0.0, 1.0, 0.0, 2.0]]), tensor([[1.0, 2.0, 3.0, 4.0]])
ALL = torch.ones(1, 4, dtype=torch.bool)


def close(actual, expected):
    torch.testing.assert_close(actual, tensor(expected))


def test_last_counted_with_padding_gaps_and_an_empty_row():
    mask = tensor([[1, 1, 0, 0], [1, 0, 0, 1], [0, 1, 1, 0], [0, 0, 0, 0]]).bool()
    assert last_counted(mask).int().tolist() == [[0, 1, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0]]


def test_the_score_is_paid_on_the_last_counted_token_and_kl_on_all():
    mask = tensor([[1, 0, 1, 0], [0, 0, 0, 0]]).bool()
    kl = tensor([[1.0, NAN, 2.0, NAN], [NAN, NAN, NAN, NAN]])
    rewards = per_token_rewards(tensor([5.0, NAN]), kl, mask, kl_coef=0.5)
    assert rewards.tolist() == [[-0.5, 0, 4.0, 0], [0, 0, 0, 0]]


def test_scores_of_tokens_are_added_where_they_are():
    mask = tensor([[1, 0, 1]]).bool()
    rewards = per_token_rewards(tensor([[3.0, NAN, 4.0]]), tensor([[1.0, NAN, 2.0]]), mask, kl_coef=0.5)
    assert rewards.tolist() == [[2.5, 0, 3.0]]


def test_a_square_batch_is_not_taken_for_token_scores():
    rewards = per_token_rewards(tensor([1.0, 2.0]), torch.zeros(2, 2), torch.ones(2, 2, dtype=torch.bool), kl_coef=0.1)
    assert rewards.tolist() == [[0, 1], [0, 2]]


def test_scores_of_a_wrong_shape_are_an_error():
    with pytest.raises(ValueError, match=r"scores of shape \(2, 1\)"):
        per_token_rewards(torch.zeros(2, 1), torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool), kl_coef=0.1)


def test_gae_of_four_steps_by_hand():
    # gamma = lam = 1/2:  d = (0 + 1 - 1, 1 + 1.5 - 2, 0 + 2 - 3, 2 + 0 - 4) = (0, 0.5, -1, -2)
    # A_3 = -2;  A_2 = -1 - 2/4 = -1.5;  A_1 = 0.5 - 1.5/4 = 0.125;  A_0 = 0 + 0.125/4
    advantages, returns = gae(REWARDS, VALUES, ALL, gamma=0.5, lam=0.5)
    close(advantages, [[0.03125, 0.125, -1.5, -2.0]])
    close(returns, [[1.03125, 2.125, 1.5, 2.0]])


def test_a_truncated_episode_goes_on_with_the_value_beyond_it():
    # d_3 = 2 + 8/2 - 4 = 2, so A_3 = 2;  A_2 = -1 + 2/4;  A_1 = 0.5 - 0.5/4;  A_0 = 0.375/4
    close(gae(REWARDS, VALUES, ALL, 0.5, 0.5, bootstrap=tensor([8.0])).advantages, [[0.09375, 0.375, -0.5, 2.0]])
    terminated = gae(REWARDS, VALUES, ALL, 0.5, 0.5)
    torch.testing.assert_close(gae(REWARDS, VALUES, ALL, 0.5, 0.5, bootstrap=tensor([0.0])), terminated)


def test_each_row_has_its_own_end():
    rewards, values, mask = REWARDS.repeat(2, 1), VALUES.repeat(2, 1), tensor([[1, 1, 1, 1], [1, 1, 0, 0]]).bool()
    advantages = gae(rewards, values, mask, 0.5, 0.5, bootstrap=tensor([0.0, 8.0])).advantages
    close(advantages[0], [0.03125, 0.125, -1.5, -2.0])
    close(advantages[1], [0.75, 3.0, 0.0, 0.0])  # d_1 = 1 + 8/2 - 2 = 3;  A_0 = 0 + 3/4


def test_lam_0_is_the_temporal_difference_error():
    close(gae(REWARDS, VALUES, ALL, gamma=0.5, lam=0.0).advantages, [[0.0, 0.5, -1.0, -2.0]])


def test_monte_carlo_returns_by_hand():
    close(monte_carlo_returns(REWARDS, ALL, gamma=0.5), [[0.75, 1.5, 1.0, 2.0]])
    close(monte_carlo_returns(REWARDS, ALL, gamma=0.5, bootstrap=tensor([16.0])), [[1.75, 3.5, 5.0, 10.0]])


def test_targets_carry_no_gradient():
    values = VALUES.clone().requires_grad_()
    advantages, returns = gae(REWARDS, values, ALL, 0.5, 0.5)
    assert not advantages.requires_grad
    assert not returns.requires_grad


@st.composite
def batches(draw):
    rows, columns, seed = draw(st.integers(1, 4)), draw(st.integers(1, 7)), draw(st.integers(0, 10**6))
    rng = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, rows, columns, generator=rng, dtype=torch.float64)
    mask = torch.rand(rows, columns, generator=rng) < draw(st.floats(0, 1))
    return rewards, values, mask, torch.randn(rows, generator=rng, dtype=torch.float64)


@settings(deadline=None, max_examples=50)
@given(batches(), st.floats(0, 1))
def test_lam_1_is_monte_carlo_minus_values(batch, gamma):
    rewards, values, mask, bootstrap = batch
    advantages, returns = gae(rewards, values, mask, gamma, lam=1.0, bootstrap=bootstrap)
    monte_carlo = monte_carlo_returns(rewards, mask, gamma, bootstrap)
    torch.testing.assert_close(returns, monte_carlo)
    torch.testing.assert_close(advantages, torch.where(mask, monte_carlo - values, 0))


@settings(deadline=None, max_examples=50)
@given(batches(), st.floats(0, 1), st.floats(0, 1))
def test_gaps_and_padding_are_jumped_over_and_their_nans_stay_there(batch, gamma, lam):
    rewards, values, mask, bootstrap = batch
    holes = torch.where(mask, 0, NAN)
    spread = gae(rewards + holes, values + holes, mask, gamma, lam, bootstrap)
    for row in range(len(mask)):
        counted = mask[row]
        alone = gae(
            rewards[row][None, counted],
            values[row][None, counted],
            torch.ones(1, int(counted.sum()), dtype=torch.bool),
            gamma,
            lam,
            bootstrap[row : row + 1],
        )
        for of_batch, of_row in zip(spread, alone, strict=True):
            torch.testing.assert_close(of_batch[row][counted], of_row[0])
            assert (of_batch[row][~counted] == 0).all()
