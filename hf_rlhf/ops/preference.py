"""Agreement of rewards with preferences: of a pair, one completion was chosen and one rejected."""

import torch
from torch import Tensor


def preference_accuracy(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Return the share of pairs with `chosen > rejected`; a tie counts half.

    Rewards (B,) -> scalar; NaN if a reward is NaN.
    """
    difference = chosen - rejected
    wins = (difference > 0).to(difference.dtype) + 0.5 * (difference == 0).to(difference.dtype)
    return torch.where(difference.isnan(), torch.nan, wins).mean()
