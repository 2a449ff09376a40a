"""Rewards and preferences: losses of groups of rated completions, and how often rewards agree with people.

A group holds up to `K` completions of one prompt. Groups are padded: `mask` (G, K) is True where there is a completion.
Each loss is one number a group, (G,). The caller sums them and divides once by the `loss_items` of the whole minibatch,
over all micro-batches and ranks, so that neither changes the objective.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from hf_rlhf.ops.masked import masked_sum


class Agreement(NamedTuple):
    """Counts of what was compared, and how much of it agrees with people, for each group, (G,) each.

    compared: pairs of different rating; for labels, completions.
    agreed: those that the rewards order alike; equal rewards count half. For labels, those on their side of 0.
    margin: sum of `reward of the better - reward of the worse`; for labels, 0.
    """

    compared: Tensor
    agreed: Tensor
    margin: Tensor


def preference_accuracy(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Return the share of pairs with `chosen > rejected`; a tie counts half.

    Rewards (B,) -> scalar; NaN if a reward is NaN.
    """
    return _wins(chosen - rejected).mean()


def better_than(ratings: Tensor, mask: Tensor) -> Tensor:
    """Return the pairs `(G, K, K)` of each group that differ in rating: True at `[g, i, j]` where i is above j.

    ratings, mask: (G, K). Completions of equal rating say nothing about each other.
    """
    there = mask[:, :, None] & mask[:, None, :]
    return there & (ratings[:, :, None] > ratings[:, None, :])


def k_wise_loss(rewards: Tensor, ratings: Tensor, mask: Tensor) -> Tensor:
    """Compute `-1 / |P| sum_{(i, j) in P} log sigmoid(s_i - s_j)` of each group.

    P are its pairs with `rating_i > rating_j`. All pairs of a prompt are one element of a batch, and each group weighs
    the same, however many it has (InstructGPT: Ouyang 2022, arXiv 2203.02155, eq. 1). With two completions it is
    Bradley-Terry's loss. 0 for a group without pairs.

    rewards, ratings, mask: (G, K) -> (G,).
    """
    pairs = better_than(ratings, mask)
    losses = masked_sum(-logsigmoid(_differences(rewards, pairs)), pairs, dim=(1, 2))
    return losses / pairs.sum(dim=(1, 2)).clamp(min=1)


def plackett_luce_loss(rewards: Tensor, ratings: Tensor, mask: Tensor) -> Tensor:
    """Compute `-sum_i (s_i - log sum_{j in W_i} exp s_j)` of each group, W_i: i itself and all of lower rating.

    The likelihood of choosing the best, then the best of the rest, and so on (Plackett 1975; Xia 2008, ListMLE, eq. 7).
    Those of equal rating are not compared with each other. With two completions it is Bradley-Terry's loss.

    rewards, ratings, mask: (G, K) -> (G,).
    """
    choices = better_than(ratings, mask) | torch.diag_embed(mask)
    table = torch.where(choices, rewards[:, None, :], -torch.inf)
    # a row without a completion would be all -inf, whose gradient is NaN
    normalizers = torch.where(mask[:, :, None], table, 0.0).logsumexp(dim=2)
    return masked_sum(normalizers - rewards, mask, dim=1)


def regression_loss(rewards: Tensor, ratings: Tensor, mask: Tensor) -> Tensor:
    """Compute `sum_i (s_i - rating_i)^2` of each group (as HelpSteer's reward models: Wang 2023, arXiv 2311.09528).

    rewards, ratings, mask: (G, K) -> (G,).
    """
    return torch.where(mask, rewards - ratings, 0.0).square().sum(dim=1)


def binary_loss(rewards: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Compute `-sum_i y_i log sigmoid(s_i) + (1 - y_i) log sigmoid(-s_i)` of each group: cross-entropy on labels y.

    rewards, labels (0 to 1), mask: (G, K) -> (G,).
    """
    rewards, labels = (torch.where(mask, values, 0.0).to(rewards.dtype) for values in (rewards, labels))
    return masked_sum(binary_cross_entropy_with_logits(rewards, labels, reduction="none"), mask, dim=1)


def center_penalty(rewards: Tensor, ratings: Tensor, mask: Tensor) -> Tensor:
    """Compute `1 / |P| sum_{(i, j) in P} (s_i + s_j)^2` of each group, P its pairs as in `k_wise_loss`.

    Keeps rewards around 0 (Eisenstein 2023, arXiv 2312.09244, eq. 2; trl's `center_rewards_coefficient`).

    rewards, ratings, mask: (G, K) -> (G,).
    """
    pairs = better_than(ratings, mask)
    sums = torch.where(pairs, rewards[:, :, None] + rewards[:, None, :], 0.0)
    return sums.square().sum(dim=(1, 2)) / pairs.sum(dim=(1, 2)).clamp(min=1)


class RatingLoss(NamedTuple):
    """A loss of groups of rated completions, and what it compares."""

    of_groups: Callable[[Tensor, Tensor, Tensor], Tensor]
    compares: bool  # pairs of a group; otherwise each completion stands alone


RATING_LOSSES: Mapping[str, RatingLoss] = {
    "k_wise": RatingLoss(k_wise_loss, compares=True),
    "plackett_luce": RatingLoss(plackett_luce_loss, compares=True),
    "regression": RatingLoss(regression_loss, compares=False),
    "binary": RatingLoss(binary_loss, compares=False),
}
"""Losses of rated groups by their names in `reward_loss`."""

BRADLEY_TERRY, REGRESSION, BINARY = "bradley_terry", "regression", "binary"
REWARD_LOSSES = (BRADLEY_TERRY, *RATING_LOSSES)
"""Names of `reward_loss`: trl's on pairs, then those of rated groups."""


COMBINATIONS = ("mean", "min", "mean_minus_std")
"""Names of `ensemble_reward`."""


def loss_items(loss: RatingLoss, ratings: Tensor, mask: Tensor) -> Tensor:
    """Return by how much each group adds to the divisor of its loss: 1 if it has a pair, or its completions; (G,)."""
    return better_than(ratings, mask).any(dim=(1, 2)).long() if loss.compares else mask.sum(dim=1)


def agreement(rewards: Tensor, ratings: Tensor, mask: Tensor) -> Agreement:
    """Count the pairs of each group and how many the rewards order as the ratings do.

    rewards, ratings, mask: (G, K).
    """
    pairs = better_than(ratings, mask)
    differences = _differences(rewards, pairs)
    counts = [masked_sum(part, pairs, dim=(1, 2)) for part in (_wins(differences), differences)]
    return Agreement(pairs.sum(dim=(1, 2)), *counts)


def label_agreement(rewards: Tensor, labels: Tensor, mask: Tensor) -> Agreement:
    """Count the completions of each group whose reward is above 0 where the label is above a half, or both below.

    rewards, labels, mask: (G, K).
    """
    agreed = masked_sum(_wins(torch.where(labels > 0.5, rewards, -rewards)), mask, dim=1)
    return Agreement(mask.sum(dim=1), agreed, torch.zeros_like(agreed))


def combined_rewards(rewards: Tensor, how: str, std_coef: float = 1.0) -> Tensor:
    """Combine the rewards of an ensemble's members: `mean`, `min`, or `mean_minus_std`, `mean - std_coef x std`.

    The least trusting member, or doubt as a penalty, keeps a policy from what only some members like (Coste 2023, arXiv
    2310.02743, eq. 3 and 4). The standard deviation is that of the k members (divided by k).

    rewards (B, k) -> (B,). Raises ValueError for another combination.
    """
    if how == "min":
        return rewards.amin(dim=1)
    if how not in COMBINATIONS:
        raise ValueError(f"how={how!r} is none of {', '.join(COMBINATIONS)}")
    penalty = std_coef if how == "mean_minus_std" else 0.0
    return rewards.mean(dim=1) - penalty * disagreement(rewards)


def disagreement(rewards: Tensor) -> Tensor:
    """Compute the standard deviation over the k members of an ensemble: rewards (B, k) -> (B,)."""
    return rewards.std(dim=1, correction=0)


def _differences(rewards: Tensor, pairs: Tensor) -> Tensor:
    """Return `s_i - s_j` at `[g, i, j]`, and 0 where there is no pair."""
    return torch.where(pairs, rewards[:, :, None] - rewards[:, None, :], 0.0)


def _wins(difference: Tensor) -> Tensor:
    wins = (difference > 0).to(difference.dtype) + 0.5 * (difference == 0).to(difference.dtype)
    return torch.where(difference.isnan(), torch.nan, wins)
