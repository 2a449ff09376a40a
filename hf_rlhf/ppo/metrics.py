"""Every number a PPO run logs: what it means, in words, and how it is computed."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hf_rlhf.ops import explained_variance, masked_mean, masked_sum
from hf_rlhf.ppo.experience import Experience
from hf_rlhf.types import Trajectory

METRICS: dict[str, str] = {
    "iteration": "PPO iterations finished.",
    "episode": "Completions sampled since the start, over all ranks.",
    "eps": "Completions sampled per second in this iteration.",
    "num_tokens": "Tokens sampled since the start.",
    "step_time": "Seconds of the iteration.",
    "time/sample": "Seconds spent on sampling completions.",
    "time/score": "Seconds spent on rewards.",
    "time/evaluate": "Seconds spent on log-probabilities, reference log-probabilities and values.",
    "time/update": "Seconds spent on optimizer updates.",
    "objective/scores": "Mean score of a completion, penalties for a missing stop included.",
    "objective/kl": "Mean over completions of the KL estimate summed over counted tokens; the KL that is penalised.",
    "objective/kl_coef": "Weight of the KL in the token rewards during the iteration.",
    "objective/entropy": "Mean over completions of -log p summed over counted tokens.",
    "objective/non_score_reward": "Mean over completions of the KL penalty, -kl_coef * KL.",
    "objective/rlhf_reward": "Mean over completions of score plus KL penalty.",
    "reward": "Mean weighted sum of the rewards, before penalties.",
    "reward_std": "Standard deviation of that sum over completions.",
    "rewards/<name>/mean": "Mean of one reward over the completions it scored.",
    "rewards/<name>/std": "Its standard deviation.",
    "rewards/unscored": "Share of completions that no reward scored; they do not count.",
    "policy/approxkl_avg": "Mean over tokens and updates of (log ratio)^2 / 2: how far updates moved the policy.",
    "policy/clipfrac_avg": "Share of tokens, over updates, whose policy gradient was clipped away.",
    "policy/entropy_avg": "Mean entropy, in nats, of the distribution a token was drawn from, before the updates.",
    "loss/policy_avg": "Mean over tokens and updates of the policy loss.",
    "loss/value_avg": "Mean over tokens and updates of the value loss, before vf_coef.",
    "val/clipfrac_avg": "Share of tokens, over updates, whose value gradient was clipped away.",
    "val/ratio": "Mean probability ratio between the policy under update and the one that sampled.",
    "val/ratio_var": "Variance of that ratio.",
    "val/first_ratio_error": "Largest |ratio - 1| on the first micro-batch of the iteration: 0 but for rounding.",
    "val/mean": "Mean value of the critic before the updates.",
    "val/explained_variance": "1 - Var(return - value) / Var(return), before the updates.",
    "val/num_eos_tokens": "Completions of the iteration that stopped by themselves.",
    "sampling/logp_gap": "Mean |difference| of a token's log-probability between sampler and trainer.",
    "completions/mean_length": "Mean tokens of a completion, the stop token included.",
    "completions/min_length": "Shortest completion, in tokens.",
    "completions/max_length": "Longest completion, in tokens.",
    "completions/clipped_ratio": "Share of completions cut off by the length limit.",
    "loss": "Mean total loss of the updates since the last log.",
    "grad_norm": "Norm of the gradient of the last update, before clipping.",
    "lr": "Learning rate of the last update.",
    "eval_reward": "As reward, on completions sampled for the evaluation prompts.",
    "eval_kl": "As objective/kl, on the evaluation prompts.",
}


def rollout_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Rewards and lengths of completions; the same for training and evaluation."""
    lengths = [len(trajectory.completion.ids) for trajectory in trajectories]
    stopped = [trajectory.completion.stopped for trajectory in trajectories]
    metrics = {
        "completions/mean_length": _mean(lengths),
        "completions/min_length": float(min(lengths)),
        "completions/max_length": float(max(lengths)),
        "completions/clipped_ratio": 1 - _mean(stopped),
        "rewards/unscored": _mean([trajectory.reward is None for trajectory in trajectories]),
    }
    for name in trajectories[0].rewards:
        values = [value for trajectory in trajectories if (value := trajectory.rewards[name]) is not None]
        metrics[f"rewards/{name}/mean"] = _mean(values)
        metrics[f"rewards/{name}/std"] = _std(values)
    return metrics


def reward_metrics(rewards: Sequence[float | None]) -> dict[str, float]:
    """Mean and spread of the weighted sum of rewards."""
    scored = [reward for reward in rewards if reward is not None]
    return {"reward": _mean(scored), "reward_std": _std(scored)}


def objective_metrics(experience: Experience, kl: Tensor, kl_coef: float) -> dict[str, float]:
    """What PPO maximises, and what the critic knew of it, before the updates."""
    mask = experience.mask
    counted = mask.any(dim=1)
    sequence_kl = masked_sum(kl, mask, dim=1)
    score = masked_mean(experience.scores, counted).item()
    mean_kl = masked_mean(sequence_kl, counted).item()
    assert experience.returns is not None
    return {
        "objective/scores": score,
        "objective/kl": mean_kl,
        "objective/kl_coef": kl_coef,
        "objective/entropy": masked_mean(masked_sum(-experience.logprobs, mask, dim=1), counted).item(),
        "objective/non_score_reward": -kl_coef * mean_kl,
        "objective/rlhf_reward": score - kl_coef * mean_kl,
        "policy/entropy_avg": masked_mean(experience.entropy, mask).item(),
        "val/mean": masked_mean(experience.values, mask).item(),
        "val/explained_variance": explained_variance(experience.values, experience.returns, mask).item(),
    }


def sampler_gap(trajectories: Sequence[Trajectory]) -> float:
    """Mean |log p by the sampler - log p by the trainer| over all tokens."""
    gaps = [
        (torch.tensor(trajectory.completion.logprobs) - trajectory.logprobs).abs()
        for trajectory in trajectories
        if trajectory.logprobs is not None
    ]
    return torch.cat(gaps).mean().item()


UPDATE_SUMS = {
    "policy/approxkl_avg": "policy/approx_kl",
    "policy/clipfrac_avg": "policy/clip_fraction",
    "loss/policy_avg": "policy/loss",
    "loss/value_avg": "value/loss",
    "val/clipfrac_avg": "value/clip_fraction",
    "val/ratio": "policy/ratio",
}


def update_metrics(sums: dict[str, float]) -> dict[str, float]:
    """Means over tokens and updates, from sums over both and over ranks."""
    tokens = sums["tokens"]
    metrics = {name: sums[key] / tokens for name, key in UPDATE_SUMS.items()}
    metrics["val/ratio_var"] = max(sums["policy/ratio_squared"] / tokens - metrics["val/ratio"] ** 2, 0.0)
    return metrics


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _std(values: Sequence[float]) -> float:
    mean = _mean(values)
    return math.sqrt(_mean([(value - mean) ** 2 for value in values])) if values else math.nan
