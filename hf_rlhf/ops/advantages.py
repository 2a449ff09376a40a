"""Per-token rewards from scores and KL, and advantages and returns from per-token rewards.

Time is counted in sampled tokens: the tokens an environment puts between two turns (mask False) are jumped over, and
neither discount nor decay runs there.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Advantages(NamedTuple):
    """Advantages and returns, both (B, T), 0 where the mask is False, and without gradient."""

    advantages: Tensor
    returns: Tensor


def last_counted(mask: Tensor) -> Tensor:
    """Mark the last counted token of each row, and nothing in a row that counts none.

    (B, T) -> (B, T), bool.
    """
    counted_from_here_on = mask.flip(-1).cumsum(-1).flip(-1)
    return mask & (counted_from_here_on == 1)


def per_token_rewards(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """Compute `r_t = -kl_coef * kl_t + score * [t is the last counted token]`.

    Source: Stiennon 2020, arXiv 2009.01325, section 3.4.

    scores: (B,), one a row, or (B, T), each added to its own token; kl: (B, T) from `kl_estimate`; mask: (B, T) bool.
    Returns (B, T), 0 where the mask is False: a row with no counted token earns nothing, whatever its score.
    """
    if scores.shape not in (mask.shape, mask.shape[:1]):
        raise ValueError(
            f"scores of shape {tuple(scores.shape)} fit neither the rows nor the tokens of a mask of shape "
            f"{tuple(mask.shape)}. Give one score a row (B,) or one a token (B, T)"
        )
    penalty = torch.where(mask, -kl_coef * kl, 0)
    if scores.dim() == 1:
        return penalty + torch.where(last_counted(mask), scores[:, None], 0)
    return penalty + torch.where(mask, scores, 0)


@torch.no_grad()
def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float, bootstrap: Tensor | None = None
) -> Advantages:
    """Compute `A_t = d_t + gamma * lam * A_{t+1};  d_t = r_t + gamma * V_{t+1} - V_t;  R_t = A_t + V_t`.

    Generalized advantage estimation (Schulman 2016, arXiv 1506.02438, eq. 16); t runs over the counted tokens of a row.

    rewards, values: (B, T); mask: (B, T) bool.
    bootstrap: (B,), the value beyond the last counted token: 0 where the episode terminated, V(s) where a limit
    truncated it. None: all terminated.
    """
    advantages = torch.zeros_like(values)
    next_value = torch.zeros_like(values[:, 0]) if bootstrap is None else bootstrap
    next_advantage = torch.zeros_like(next_value)
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = delta + gamma * lam * next_advantage
        next_value = torch.where(mask[:, t], values[:, t], next_value)
        next_advantage = torch.where(mask[:, t], advantage, next_advantage)
        advantages[:, t] = torch.where(mask[:, t], advantage, 0)
    return Advantages(advantages, returns=torch.where(mask, advantages + values, 0))


def monte_carlo_returns(rewards: Tensor, mask: Tensor, gamma: float, bootstrap: Tensor | None = None) -> Tensor:
    """Compute `R_t = r_t + gamma * R_{t+1}`, with `R = bootstrap` beyond the last counted token.

    Sutton and Barto 2018, eq. 3.9.

    It is GAE at lam = 1 of a critic that says 0. rewards: (B, T); mask: (B, T) bool; bootstrap: (B,) as in `gae`.
    Returns (B, T), 0 where the mask is False.
    """
    return gae(rewards, torch.zeros_like(rewards), mask, gamma, lam=1.0, bootstrap=bootstrap).returns
