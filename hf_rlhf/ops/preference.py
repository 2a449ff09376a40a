"""Learning and judging a reward model from pairs: one completion chosen, one rejected."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def bradley_terry_loss(chosen: Tensor, rejected: Tensor, margin: Tensor | float | None = None) -> Tensor:
    """Compute `-log sigmoid(chosen - rejected - margin)`, for each pair.

    The negative log-likelihood of the choice (Bradley and Terry 1952; Ouyang 2022, arXiv 2203.02155, eq. 1); the margin
    asks more of clear preferences (Touvron 2023, arXiv 2307.09288, eq. 2).
    chosen, rejected: scores (B,); margin: (B,), one number, or None for none. Returns (B,).
    """
    difference = chosen - rejected
    if margin is not None:
        difference = difference - margin
    return -logsigmoid(difference)


def preference_accuracy(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Return the share of pairs with `chosen > rejected`; a tie counts half.

    Scores (B,) -> scalar; NaN if a score is NaN.
    """
    difference = chosen - rejected
    wins = (difference > 0).to(difference.dtype) + 0.5 * (difference == 0).to(difference.dtype)
    return torch.where(difference.isnan(), torch.nan, wins).mean()
