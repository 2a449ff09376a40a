"""Returns, baselines and the fit of an advantage function, by numbers worked by hand."""

import math

import pytest
import torch
from torch import tensor

from hf_rlhf.ops import (
    direct_advantage_loss,
    gae,
    leave_one_out,
    less_group_mean,
    less_mean_of_others,
    monte_carlo_returns,
    over_tokens,
    sequence_returns,
)
from hf_rlhf.ops.logprobs import centered_embeddings

NAN = math.nan
MASK = tensor([[1, 1, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0]]).bool()
REWARDS = tensor([[1.0, 2.0, NAN, 4.0], [NAN, 3.0, NAN, NAN], [NAN, NAN, NAN, NAN]])


def test_returns_jump_over_what_does_not_count_and_go_on_beyond_the_end():
    # row 0, gamma = 1/2, 8 beyond: 4 + 8/2 = 8;  2 + 8/2 = 6;  1 + 6/2 = 4
    beyond = tensor([8.0, 0.0, 5.0])
    returns = monte_carlo_returns(REWARDS, MASK, 0.5, beyond)
    assert returns.tolist() == [[4, 6, 0, 8], [0, 3, 0, 0], [0, 0, 0, 0]]
    assert sequence_returns(REWARDS, MASK, 0.5, beyond).tolist() == [4, 3, 0]
    assert sequence_returns(REWARDS, MASK, 1.0).tolist() == [7, 3, 0]
    assert over_tokens(tensor([7.0, 3.0, 1.0]), MASK).tolist() == [[7, 7, 0, 7], [0, 3, 0, 0], [0, 0, 0, 0]]


def test_monte_carlo_returns_pass_gradients_to_the_rewards_that_count():
    rewards = torch.ones(2, 4, requires_grad=True)
    monte_carlo_returns(rewards, MASK[:2], 0.5)[0].sum().backward()
    assert rewards.grad.tolist() == [[1, 1.5, 0, 1.75], [0, 0, 0, 0]]  # r_3 is in R_3, R_1 / 2 and R_0 / 4


def test_a_group_is_compared_with_its_own_members_that_have_a_return():
    returns = tensor([1.0, 2.0, 6.0, 4.0, NAN, 8.0, 5.0, NAN, NAN])
    counted = tensor([1, 1, 1, 1, 0, 1, 1, 0, 0]).bool()
    # others of 1, 2, 6: 4, 3.5, 1.5;  of 4 and 8: each other;  of 5: none
    assert leave_one_out(returns, counted, 3).tolist() == [-3, -1.5, 4.5, -4, 0, 4, 0, 0, 0]
    assert less_group_mean(returns, counted, 3).tolist() == [-2, -1, 3, -2, 0, 2, 0, 0, 0]
    with pytest.raises(ValueError, match="9 completions are no groups of 4"):
        leave_one_out(returns, counted, 4)


def test_earlier_returns_are_others_too():
    # two returns of this iteration, and earlier ones that weigh 3 with a sum of 9
    returns, counted = tensor([1.0, 5.0, NAN]), tensor([1, 1, 0]).bool()
    less = less_mean_of_others(returns, counted, tensor(15.0), tensor(5.0))
    assert less.tolist() == [1 - 14 / 4, 5 - 10 / 4, 0]


def test_values_alone_are_gae_at_lambda_1():
    values = tensor([[1.0, 2.0, NAN, 3.0], [NAN, 1.0, NAN, NAN], [NAN] * 4])
    advantages, _ = gae(REWARDS, values, MASK, 0.5, 1.0, tensor([8.0, 0.0, 5.0]))
    assert advantages.tolist() == [[3, 4, 0, 5], [0, 2, 0, 0], [0, 0, 0, 0]]


def test_the_fit_of_advantages_by_hand():
    # gamma = 1/2, 8 beyond. r - A = (1 - 1, 2 - 0, 4 - 2): left_3 = 2 + 4 = 6, left_1 = 2 + 3 = 5, left_0 = 2.5
    # less values 1, 2, 3: errors 1.5, 3, 3
    advantages = tensor([[1.0, 0.0, NAN, 2.0]], requires_grad=True)
    values = tensor([[1.0, 2.0, NAN, 3.0]], requires_grad=True)
    loss = direct_advantage_loss(advantages, values, REWARDS[:1], MASK[:1], 0.5, tensor([8.0]))
    assert loss.item() == (1.5**2 + 3**2 + 3**2) / 2
    loss.backward()
    # dL/dA_k = - sum_{t <= k} gamma^(k - t) e_t
    assert advantages.grad.tolist() == [[-1.5, -(3 + 0.75), 0, -(3 + 1.5 + 0.375)]]
    assert values.grad is None


def test_the_fit_finds_the_advantages_of_a_policy():
    """One state, three tokens: the least squares of returns end at `Q - sum pi Q`."""
    policy, q = tensor([0.5, 0.3, 0.2]), tensor([1.0, 0.0, 4.0])
    values, one = (policy * q).sum().expand(1, 1), torch.ones(1, 1).bool()
    u = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.SGD([u], lr=1.0)
    for _ in range(200):
        optimizer.zero_grad()
        centered = u - (policy * u).sum()
        losses = [direct_advantage_loss(centered[t].view(1, 1), values, q[t].view(1, 1), one, 1.0) for t in range(3)]
        (policy * torch.stack(losses)).sum().backward()
        optimizer.step()
    torch.testing.assert_close((u - (policy * u).sum()).detach(), q - values[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("support", [None, [tensor([0, 2, 3]), None, tensor([1, 4])]])
def test_what_is_linear_in_centered_embeddings_has_mean_0_under_the_policy(support):
    generator = torch.Generator().manual_seed(0)
    hidden, weight, embeddings = (torch.randn(*size, generator=generator) for size in ((3, 4), (5, 4), (5, 6)))
    logits = hidden @ weight.T / 0.7
    allowed = torch.ones(3, 5, dtype=torch.bool)
    for row, ids in enumerate(support or []):
        if ids is not None:
            allowed[row] = torch.isin(torch.arange(5), ids)
    policy = logits.masked_fill(~allowed, float("-inf")).softmax(-1)
    direction, mean = torch.randn(6, generator=generator), torch.zeros(3)
    for token in range(5):
        of_token = centered_embeddings(
            hidden,
            torch.full((3,), token),
            lambda states: states @ weight.T,
            embeddings,
            temperature=0.7,
            support=support,
            chunk_size=2,
        )
        torch.testing.assert_close(of_token, embeddings[token] - policy @ embeddings)
        mean += policy[:, token] * (of_token @ direction)
    assert mean.abs().max() < 1e-5
