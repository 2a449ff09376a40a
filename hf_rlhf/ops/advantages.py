"""Per-token rewards from scores and KL, and advantages and returns from per-token rewards.

Time is counted in sampled tokens: the tokens an environment puts between two turns (mask False) are jumped over, and
neither discount nor decay runs there.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from hf_rlhf.ops.masked import masked_sum


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
    Returns (B, T), 0 where the mask is False; differentiable in the rewards.
    """
    following = torch.zeros_like(rewards[:, 0]) if bootstrap is None else bootstrap
    returns = []
    for t in reversed(range(rewards.shape[1])):
        following = torch.where(mask[:, t], rewards[:, t] + gamma * following, following)
        returns.append(torch.where(mask[:, t], following, 0))
    return torch.stack(returns[::-1], dim=1)


def sequence_returns(rewards: Tensor, mask: Tensor, gamma: float, bootstrap: Tensor | None = None) -> Tensor:
    """Compute `G = sum_t gamma^t r_t`, the return of the whole completion: that of its first counted token.

    As an advantage of every token it is REINFORCE (Williams 1992, doi 10.1007/BF00992696).

    rewards: (B, T); mask: (B, T) bool; bootstrap: (B,) as in `gae`. Returns (B,), 0 where nothing counts.
    """
    first = mask & (mask.cumsum(dim=1) == 1)
    return masked_sum(monte_carlo_returns(rewards, mask, gamma, bootstrap), first, dim=1)


def over_tokens(per_row: Tensor, mask: Tensor) -> Tensor:
    """Give every counted token the number of its row. `(B,), (B, T) -> (B, T)`, 0 where the mask is False."""
    return torch.where(mask, per_row[:, None], 0)


def less_mean_of_others(returns: Tensor, counted: Tensor, total: Tensor, count: Tensor) -> Tensor:
    """Compute `A_i = G_i - (total - G_i) / (count - 1)`: the return less the mean of those of other completions.

    A baseline that does not depend on its own completion leaves the expected gradient as it is (Kool 2019,
    https://openreview.net/forum?id=r1lgTGL5DE; as RLOO in Ahmadian 2024, arXiv 2402.14740, eq. 7).

    Args:
        returns: (B,) G.
        counted: (B,) bool, which of them there are.
        total, count: sum and number of the returns that are compared, with its own: scalars or (B,).

    Returns (B,): 0 where nothing counts, and where there is no other, since one return alone says nothing.
    """
    others = count - 1
    return torch.where(counted & (others > 0), returns - (total - returns) / others.clamp(min=1e-12), 0)


def leave_one_out(returns: Tensor, counted: Tensor, group: int) -> Tensor:
    """Compute `less_mean_of_others` among the completions of a prompt, `group` neighbors each.

    returns: (B,); counted: (B,) bool. Returns (B,).
    """
    total, count = _of_groups(returns, counted, group)
    return less_mean_of_others(returns, counted, total, count)


def less_group_mean(returns: Tensor, counted: Tensor, group: int) -> Tensor:
    """Compute `A_i = G_i - mean_j G_j` among the completions of a prompt, `group` neighbors each, with itself.

    It is `(n - 1) / n` of `leave_one_out` among n (Shao 2024, arXiv 2402.03300, section 4.1, without the division by
    the standard deviation).

    returns: (B,); counted: (B,) bool. Returns (B,).
    """
    total, count = _of_groups(returns, counted, group)
    return torch.where(counted, returns - total / count.clamp(min=1), 0)


def _of_groups(returns: Tensor, counted: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Return sum and number of the returns that count in the group of each, `(B,)` and `(B,)`."""
    if len(returns) % group:
        raise ValueError(f"{len(returns)} completions are no groups of {group}. Give whole groups")
    rows, mask = returns.reshape(-1, group), counted.reshape(-1, group)
    total, count = masked_sum(rows, mask, dim=1), mask.sum(dim=1).to(returns.dtype)
    return total.repeat_interleave(group), count.repeat_interleave(group)


def direct_advantage_loss(
    advantages: Tensor,
    values: Tensor,
    rewards: Tensor,
    mask: Tensor,
    gamma: float,
    bootstrap: Tensor | None = None,
) -> Tensor:
    """Compute `sum_t (sum_{k >= t} gamma^(k - t) (r_k - A_k) + gamma^(T - t) bootstrap - V_t)^2 / 2`.

    Direct Advantage Estimation (Pan 2022, arXiv 2109.06093, eq. 9): a return is the value of the state, and the
    advantages of what was chosen from there on. Its minimum over functions whose mean under the policy is 0 at every
    state is the policy's advantage function.

    advantages: (B, T), of a function with that mean; gradient flows into them alone. values, rewards: (B, T); mask:
    (B, T) bool; bootstrap: (B,) as in `gae`. Returns a scalar.
    """
    left = monte_carlo_returns(rewards.detach() - advantages, mask, gamma, bootstrap)
    return masked_sum(0.5 * (left - values.detach()).square(), mask)
