"""Losses of rated groups against numbers worked by hand and identities, and the agreement of rewards with people."""

import math

import pytest
import torch
from torch import tensor
from torch.nn.functional import logsigmoid

from hf_rlhf.ops.preference import (
    RATING_LOSSES,
    agreement,
    binary_loss,
    center_penalty,
    k_wise_loss,
    label_agreement,
    loss_items,
    plackett_luce_loss,
    preference_accuracy,
    regression_loss,
)

REWARDS = tensor([[1.0, 0.0, 2.0, math.nan], [0.5, -0.5, 7.0, math.inf]])
RATINGS = tensor([[3.0, 1.0, 2.0, 9.0], [1.0, 1.0, 9.0, 9.0]])
MASK = tensor([[True, True, True, False], [True, True, False, False]])


def sigma(x):
    return 1 / (1 + math.exp(-x))


def test_accuracy_counts_a_tie_half_and_does_not_hide_a_nan():
    assert preference_accuracy(tensor([2.0, 1.0, 1.0, 5.0]), tensor([1.0, 2.0, 1.0, 0.0])) == 0.625
    assert preference_accuracy(tensor([2.0, math.nan]), tensor([1.0, 0.0])).isnan()


def test_k_wise_is_the_mean_over_the_pairs_of_a_group():
    """Ratings 3 > 2 > 1 of rewards 1, 2, 0: pairs of differences 1, -1 and 2. The second group has ties alone."""
    by_hand = -(math.log(sigma(1)) + math.log(sigma(-1)) + math.log(sigma(2))) / 3
    assert k_wise_loss(REWARDS, RATINGS, MASK).tolist() == pytest.approx([by_hand, 0.0])


def test_plackett_luce_is_the_likelihood_of_choosing_the_best_of_the_rest():
    """Best of 1, 2, 0 is the first, then 2 of (2, 0). Completions of equal rating are not compared."""
    e = math.exp
    by_hand = -math.log(e(1) / (e(1) + e(2) + e(0))) - math.log(e(2) / (e(2) + e(0)))
    assert plackett_luce_loss(REWARDS, RATINGS, MASK).tolist() == pytest.approx([by_hand, 0.0])


@pytest.mark.parametrize("loss", [k_wise_loss, plackett_luce_loss])
def test_two_completions_give_bradley_terry_with_its_gradient(loss):
    generator = torch.Generator().manual_seed(0)
    rewards = torch.randn(6, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    ratings = tensor([[2.0, 1.0], [1.0, 2.0]] * 3)
    chosen, rejected = rewards.gather(1, ratings.argmax(1, keepdim=True)), rewards.gather(1, ratings.argmin(1, keepdim=True))  # fmt: skip
    bradley_terry = -logsigmoid(chosen - rejected)[:, 0]
    found = loss(rewards, ratings, torch.ones(6, 2, dtype=torch.bool))
    torch.testing.assert_close(found, bradley_terry)
    gradients = [torch.autograd.grad(each.sum(), rewards, retain_graph=True)[0] for each in (found, bradley_terry)]
    torch.testing.assert_close(*gradients)


def test_what_stands_alone_is_summed_over_completions():
    assert regression_loss(REWARDS, RATINGS, MASK).tolist() == pytest.approx([4 + 1 + 0, 0.25 + 2.25])
    labels = tensor([[1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    by_hand = [
        -math.log(sigma(1)) - math.log(sigma(-0.0)) - math.log(sigma(2)),
        -math.log(sigma(-0.5)) - math.log(sigma(-0.5)),
    ]
    assert binary_loss(REWARDS, labels, MASK).tolist() == pytest.approx(by_hand)


@pytest.mark.parametrize("name", RATING_LOSSES)
def test_padding_gives_no_gradient_and_no_nan(name):
    rewards = REWARDS.clone().requires_grad_()
    RATING_LOSSES[name].of_groups(rewards, RATINGS.clamp(max=1), MASK).sum().backward()
    assert rewards.grad is not None
    assert torch.isfinite(rewards.grad).all()
    assert (rewards.grad[~MASK] == 0).all()


def test_a_group_counts_once_where_it_has_pairs_and_else_its_completions():
    assert loss_items(RATING_LOSSES["k_wise"], RATINGS, MASK).tolist() == [1, 0]
    assert loss_items(RATING_LOSSES["binary"], RATINGS, MASK).tolist() == [3, 2]


def test_centering_is_that_of_trl_for_two_completions():
    rewards, ratings = tensor([[1.0, 3.0]]), tensor([[0.0, 1.0]])
    assert center_penalty(rewards, ratings, torch.ones(1, 2, dtype=torch.bool)).tolist() == [16.0]


def test_agreement_counts_pairs_of_different_rating():
    found = agreement(REWARDS, RATINGS, MASK)
    assert found.compared.tolist() == [3, 0]
    assert found.agreed.tolist() == [2, 0]
    assert found.margin.tolist() == [1 - 1 + 2, 0]
    assert agreement(tensor([[1.0, 1.0]]), tensor([[0.0, 1.0]]), torch.ones(1, 2, dtype=torch.bool)).agreed == 0.5


def test_agreement_with_labels_is_the_side_of_zero():
    found = label_agreement(REWARDS, tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]), MASK)
    assert found.compared.tolist() == [3, 2]
    assert found.agreed.tolist() == [1 + 0.5 + 0, 0 + 1]
