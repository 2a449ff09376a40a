"""The two losses of PPO.

Losses and statistics are sums over counted tokens. The caller divides each once by the number of counted tokens of the
whole minibatch, over all micro-batches and ranks, so that neither changes the objective or what is logged.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from hf_rlhf.ops.masked import masked_moments, masked_sum


class PolicyLoss(NamedTuple):
    """`loss`: scalar sum, differentiable. `stats`: scalar sums, without gradient.

    clip_fraction: tokens whose clipped objective is the smaller one, so that they give no gradient.
    approx_kl: `(log ratio)^2 / 2`, the k2 estimate of how far the policy moved since it sampled.
    ratio, ratio_squared: `policy / old policy` and its square, for the mean and the variance.
    """

    loss: Tensor
    stats: dict[str, Tensor]


class ValueLoss(NamedTuple):
    """`loss`: scalar sum, differentiable. `stats`: scalar sums, without gradient.

    clip_fraction: tokens whose clipped error is the larger one, so that they give no gradient.
    value, return, return_squared: V, R and R^2. error_squared: `(V - R)^2`, before clipping.
    """

    loss: Tensor
    stats: dict[str, Tensor]


def clipped_policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, cliprange: float
) -> PolicyLoss:
    """`sum_t -min(r_t A_t, clip(r_t, 1 - c, 1 + c) A_t);  r_t = exp(logprobs_t - old_logprobs_t)`.

    PPO's clipped surrogate (Schulman 2017, arXiv 1707.06347, eq. 7), with the sign of a loss.
    logprobs, old_logprobs, advantages: (B, T); mask: (B, T) bool; cliprange: c. Gradient flows into logprobs only.
    """
    # Masked before the exponential: an infinite ratio on a token that does not count would still make its gradient NaN.
    log_ratio = torch.where(mask, logprobs - old_logprobs.detach(), 0)
    ratio = log_ratio.exp()
    unclipped = ratio * advantages.detach()
    clipped = ratio.clamp(1 - cliprange, 1 + cliprange) * advantages.detach()
    loss = masked_sum(-torch.min(unclipped, clipped), mask)

    ratio, log_ratio = ratio.detach(), log_ratio.detach()
    stats = {
        "clip_fraction": masked_sum((clipped < unclipped).to(ratio.dtype), mask),
        "approx_kl": masked_sum(0.5 * log_ratio.square(), mask),
        "ratio": masked_sum(ratio, mask),
        "ratio_squared": masked_sum(ratio.square(), mask),
    }
    return PolicyLoss(loss, stats)


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, cliprange_value: float | None
) -> ValueLoss:
    """`sum_t max((V_t - R_t)^2, (clip(V_t, W_t - c, W_t + c) - R_t)^2) / 2`, W the values of the sampling policy.

    As in the reference implementation of PPO (https://github.com/openai/baselines, ppo2/model.py); not in the paper.
    values, old_values, returns: (B, T); mask: (B, T) bool; cliprange_value: c, or None for the plain squared error.
    Gradient flows into values only.
    """
    # Masked before the square: beside a NaN on a token that does not count, its gradient would be NaN too.
    values = torch.where(mask, values, 0)
    old_values, returns = old_values.detach(), returns.detach()
    error_squared = clipped_error_squared = (values - returns).square()
    if cliprange_value is not None:
        clipped_values = old_values + (values - old_values).clamp(-cliprange_value, cliprange_value)
        clipped_error_squared = (clipped_values - returns).square()
    loss = masked_sum(0.5 * torch.max(error_squared, clipped_error_squared), mask)

    stats = {
        "clip_fraction": masked_sum((clipped_error_squared > error_squared).to(values.dtype), mask),
        "value": masked_sum(values.detach(), mask),
        "error_squared": masked_sum(error_squared.detach(), mask),
        "return": masked_sum(returns, mask),
        "return_squared": masked_sum(returns.square(), mask),
    }
    return ValueLoss(loss, stats)


@torch.no_grad()
def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """`1 - Var(R - V) / Var(R)`: 1 for a perfect critic, 0 for one that says a constant, negative for a worse one.

    values, returns: (B, T); mask: (B, T) bool. Returns a scalar, NaN where the returns do not vary.
    """
    spread = masked_moments(returns, mask).variance
    unexplained = masked_moments(returns - values, mask).variance
    return torch.where(spread > 0, 1 - unexplained / spread, torch.nan)
