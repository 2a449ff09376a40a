"""The loss of PPO, from what the policy says now and what it said when it sampled."""

from typing import NamedTuple

from torch import Tensor

from hf_rlhf.models.policy import PolicyOutput
from hf_rlhf.ops import (
    clipped_policy_loss,
    clipped_value_loss,
    direct_advantage_loss,
    kl_estimate,
    masked_sum,
    truncated_importance_weights,
)
from hf_rlhf.ppo.config import PPOConfig
from hf_rlhf.ppo.experience import Experience


class PPOLoss(NamedTuple):
    """Sums over the counted tokens of a micro-batch; the trainer divides once by the tokens of the minibatch."""

    total: Tensor  # scalar, differentiable
    stats: dict[str, Tensor]  # scalars without gradient, by the key under which their mean is logged


def ppo_loss(output: PolicyOutput, experience: Experience, config: PPOConfig, *, warming_up: bool = False) -> PPOLoss:
    """Compute `policy + vf_coef * value - entropy_coef * entropy + kl_coef * KL`, the last only with `kl_in_loss`.

    The fit of an advantage head, if there is one, is added to the value loss. While the critic is warming up, that one
    alone counts.
    """
    mask = experience.mask
    assert experience.advantages is not None
    assert experience.returns is not None
    assert output.values is not None
    weights = None
    stats = {}
    if config.importance_cap is not None:
        weights = truncated_importance_weights(
            experience.logprobs, experience.sampler_logprobs, mask, config.importance_cap
        )
        stats["sampling/importance_weight"] = masked_sum(weights, mask)
    policy = clipped_policy_loss(
        output.logprobs,
        experience.logprobs,
        experience.advantages,
        mask,
        config.cliprange,
        cliprange_high=config.cliprange_high,
        dual_clip=config.dual_clip,
        weights=weights,
    )
    value = clipped_value_loss(output.values, experience.values, experience.returns, mask, config.value_clip)
    stats |= {
        "loss/policy_avg": policy.loss.detach(),
        "loss/value_avg": value.loss.detach(),
        "policy/approxkl_avg": policy.stats["approx_kl"],
        "policy/clipfrac_avg": policy.stats["clip_fraction"],
        "val/clipfrac_avg": value.stats["clip_fraction"],
        "val/ratio": policy.stats["ratio"],
        "val/ratio_deviation_squared": policy.stats["ratio_deviation_squared"],
    }
    if config.dual_clip is not None:
        stats["policy/dual_clipfrac_avg"] = policy.stats["dual_clip_fraction"]
    value_loss = value.loss
    if output.advantages is not None:
        assert experience.per_token_rewards is not None
        fit = direct_advantage_loss(
            output.advantages,
            experience.values,
            experience.per_token_rewards,
            mask,
            config.gamma,
            experience.bootstrap,
        )
        stats["loss/advantage_avg"] = fit.detach()
        value_loss = value_loss + fit
    policy_loss = policy.loss
    if config.entropy_coef:
        assert output.entropy is not None
        entropy = masked_sum(output.entropy, mask)
        stats["loss/entropy_avg"] = entropy.detach()
        policy_loss = policy_loss - config.entropy_coef * entropy
    if config.kl_in_loss:
        kl = output.kl
        if kl is None:
            kl = kl_estimate(config.kl_estimator, output.logprobs, experience.reference_logprobs)
        kl = masked_sum(kl, mask)
        stats["loss/kl_avg"] = kl.detach()
        policy_loss = policy_loss + experience.kl_coef * kl
    if warming_up:
        policy_loss = 0.0 * policy_loss  # and not omitted: DDP waits for a gradient of every parameter
    return PPOLoss(policy_loss + config.vf_coef * value_loss, stats)


def text_loss(output: PolicyOutput, mask: Tensor) -> Tensor:
    """Compute `-sum log p` over the tokens of texts: the language-model loss of PPO-ptx.

    Ouyang 2022, arXiv 2203.02155, eq. 2.
    """
    assert output.text_logprobs is not None
    return masked_sum(-output.text_logprobs, mask)
