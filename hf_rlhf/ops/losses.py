"""The two losses of PPO.

Losses and statistics are sums over counted tokens. The caller divides each once by the number of counted tokens of the
whole minibatch, over all micro-batches and ranks, so that neither changes the objective or what is logged.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from hf_rlhf.ops.masked import Moments, masked_moments, masked_sum


class PolicyLoss(NamedTuple):
    """`loss`: scalar sum, differentiable. `stats`: scalar sums, without gradient.

    clip_fraction: tokens whose objective is one of the bounds, so that they give no gradient; the dual clip's included.
    dual_clip_fraction: tokens at the bound of the dual clip.
    approx_kl: `(log ratio)^2 / 2`, the k2 estimate of how far the policy moved since it sampled.
    ratio: `policy / old policy`, for its mean.
    ratio_deviation_squared: `(ratio - 1)^2`, for its variance: around 0, fp32 would lose the digits of a small one.
    """

    loss: Tensor
    stats: dict[str, Tensor]


class ValueLoss(NamedTuple):
    """`loss`: scalar sum, differentiable. `stats`: scalar sums, without gradient.

    clip_fraction: tokens whose clipped error is the larger one, so that they give no gradient.
    """

    loss: Tensor
    stats: dict[str, Tensor]


def clipped_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    cliprange: float,
    *,
    cliprange_high: float | None = None,
    dual_clip: float | None = None,
    weights: Tensor | None = None,
) -> PolicyLoss:
    """Compute `sum_t -w_t J_t`, where `J_t = min(r_t A_t, clip(r_t, 1 - c, 1 + h) A_t)`.

    `r_t = exp(logprobs_t - old_logprobs_t)`.

    PPO's clipped surrogate (Schulman 2017, arXiv 1707.06347, eq. 7), with the sign of a loss. With a dual clip d,
    `J_t = max(min(...), d A_t)` where `A_t < 0`, so that no ratio, however large, weighs more than d (Ye 2020, arXiv
    1912.09729, eq. 5).

    Args:
        logprobs, old_logprobs, advantages: (B, T); gradient flows into logprobs only.
        mask: (B, T) bool.
        cliprange: c.
        cliprange_high: h, if it is not c (clip-higher: Yu 2025, arXiv 2503.14476, section 3.1).
        dual_clip: d, above 1; None for none.
        weights: (B, T) w, such as `truncated_importance_weights`; None for 1 each. They are not in the statistics.
    """
    if dual_clip is not None and dual_clip <= 1:
        raise ValueError(f"dual_clip={dual_clip} must be above 1, or tokens at ratio 1 would give no gradient. Try 3")
    advantages = advantages.detach()
    # Masked before the exponential: an infinite ratio on a token that does not count would still make its gradient NaN.
    log_ratio = torch.where(mask, logprobs - old_logprobs.detach(), 0)
    ratio = log_ratio.exp()
    unclipped = ratio * advantages
    clipped = ratio.clamp(1 - cliprange, 1 + (cliprange if cliprange_high is None else cliprange_high)) * advantages
    objective = torch.min(unclipped, clipped)
    at_dual_clip = torch.zeros_like(mask)
    if dual_clip is not None:
        at_dual_clip = (advantages < 0) & (objective < dual_clip * advantages)
        objective = torch.where(at_dual_clip, dual_clip * advantages, objective)
    loss = masked_sum(-objective if weights is None else -weights.detach() * objective, mask)

    ratio, log_ratio = ratio.detach(), log_ratio.detach()
    stats = {
        "clip_fraction": masked_sum(((clipped < unclipped) | at_dual_clip).to(ratio.dtype), mask),
        "dual_clip_fraction": masked_sum(at_dual_clip.to(ratio.dtype), mask),
        "approx_kl": masked_sum(0.5 * log_ratio.square(), mask),
        "ratio": masked_sum(ratio, mask),
        "ratio_deviation_squared": masked_sum(log_ratio.expm1().square(), mask),
    }
    return PolicyLoss(loss, stats)


@torch.no_grad()
def truncated_importance_weights(old_logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor, cap: float) -> Tensor:
    """Compute `w_t = min(exp(old_logprobs_t - sampler_logprobs_t), cap)`, (B, T), without gradient.

    A weight is 1 where the mask is False.

    Truncated importance sampling (Ionides 2008, doi 10.1198/106186008X320456), here of tokens whose sampler rounds
    otherwise than the trainer (Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL
    Training", https://fengyao.notion.site/off-policy-rl).
    old_logprobs: (B, T) by the trainer's own forward pass; sampler_logprobs: (B, T) by the engine that sampled, such
    as vLLM.
    """
    return torch.where(mask, (old_logprobs - sampler_logprobs).exp().clamp(max=cap), 1)


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, cliprange_value: float | None
) -> ValueLoss:
    """Compute `sum_t max((V_t - R_t)^2, (clip(V_t, W_t - c, W_t + c) - R_t)^2) / 2`, W the sampling policy's values.

    As in the reference implementation of PPO (https://github.com/openai/baselines, ppo2/model.py); not in the paper.
    values, old_values, returns: (B, T); mask: (B, T) bool; cliprange_value: c, or None for the plain squared error.
    Gradient flows into values only.
    """
    # Masked before the square: beside a NaN on a token that does not count, its gradient would be NaN too.
    values = torch.where(mask, values, 0)
    old_values, returns = old_values.detach(), returns.detach()
    error_squared = clipped_error_squared = (values - returns).square()
    if cliprange_value is not None:
        # Not old + clamp(new - old): its rounding would make one of two equal errors the larger one.
        clipped_values = values.clamp(old_values - cliprange_value, old_values + cliprange_value)
        clipped_error_squared = (clipped_values - returns).square()
    loss = masked_sum(0.5 * torch.max(error_squared, clipped_error_squared), mask)

    stats = {
        "clip_fraction": masked_sum((clipped_error_squared > error_squared).to(values.dtype), mask),
    }
    return ValueLoss(loss, stats)


@torch.no_grad()
def explained_variance(
    values: Tensor, returns: Tensor, mask: Tensor, moments: Callable[[Tensor, Tensor], Moments] = masked_moments
) -> Tensor:
    """Compute `1 - Var(R - V) / Var(R)`: 1 for a perfect critic, 0 for a constant one, negative for a worse one.

    values, returns: (B, T); mask: (B, T) bool; moments: like `masked_moments`, which is of these
    tensors alone; or `global_moments`, of those of all ranks.
    Returns a scalar, NaN where the returns do not vary.
    """
    spread = moments(returns, mask).variance
    unexplained = moments(returns - values, mask).variance
    return torch.where(spread > 0, 1 - unexplained / spread, torch.nan)
