"""Every number a PPO run logs: what it means, in words, and how it is computed."""

import math
from collections.abc import Mapping, Sequence

import torch

from hf_rlhf.distributed import gather_in_order, gather_numbers, global_mean, global_moments, global_sum
from hf_rlhf.ops import explained_variance, masked_sum
from hf_rlhf.ppo.experience import Experience
from hf_rlhf.types import ForwardPass, Reward, Trajectory

METRICS: dict[str, str] = {
    "iteration": "PPO iterations finished.",
    "episode": "Completions sampled since the start, over all ranks.",
    "eps": "Completions sampled per second in this iteration.",
    "num_tokens": "Tokens sampled since the start.",
    "step_time": "Seconds of the iteration.",
    "time/sample": "Seconds spent on sampling completions.",
    "time/reward": "Seconds spent on rewards.",
    "time/forward_pass": "Seconds spent on log-probabilities, reference log-probabilities and values.",
    "time/update": "Seconds spent on optimizer updates.",
    "objective/scores": "Mean score of a completion: its reward after scaling, clipping and penalties.",
    "objective/kl": "Mean over completions of the KL estimate summed over counted tokens; the KL that is penalized.",
    "objective/kl_coef": "Weight of the KL during the iteration, in the per-token rewards or in the loss.",
    "objective/entropy": "Mean over completions of -log p summed over counted tokens.",
    "objective/non_score_reward": "Mean over completions of the KL penalty, -kl_coef * KL, wherever it is paid.",
    "objective/rlhf_reward": "Mean over completions of score plus KL penalty.",
    "reward": "Mean weighted sum of the rewards, before scaling and penalties.",
    "reward_std": "Standard deviation of that sum over completions.",
    "rewards/<name>/mean": "Mean of one reward over the completions that it gave a number.",
    "rewards/<name>/std": "Its standard deviation.",
    "rewards/<name>/cached": "Share of completions whose reward reward_cache held.",
    "rewards/unscored": "Share of completions without a reward; they do not count.",
    "policy/updates": "Optimizer updates made in the iteration.",
    "policy/skipped_updates": "Updates not made because their mean ratio was above ratio_threshold.",
    "policy/empty_updates": "Updates not made because nothing in their minibatch counts: all of it is without reward or"
    " masked.",
    "nonfinite_updates": "Updates of the whole run that were not made because their loss or gradients were NaN or"
    " infinite.",
    "policy/approxkl_avg": "Mean over tokens and updates of (log ratio)^2 / 2: how far updates moved the policy.",
    "policy/clipfrac_avg": "Share of tokens, over updates, whose policy gradient was clipped away.",
    "policy/dual_clipfrac_avg": "Share of tokens, over updates, whose policy gradient dual_clip cut off.",
    "policy/entropy_avg": "Mean entropy, in nats, of the distribution a token was drawn from, before the updates.",
    "loss/policy_avg": "Mean over tokens and updates of the policy loss.",
    "loss/value_avg": "Mean over tokens and updates of the value loss, before vf_coef.",
    "loss/advantage_avg": "With advantage_estimator=dae: mean over tokens and updates of the advantage head's loss.",
    "loss/entropy_avg": "Mean entropy over tokens and updates, where entropy_coef puts it into the loss.",
    "loss/kl_avg": "Mean KL to the reference over tokens and updates, where kl_in_loss puts it into the loss.",
    "loss/ptx_avg": "Mean over tokens and updates of the language-model loss on texts, before ptx_coef.",
    "val/clipfrac_avg": "Share of tokens, over updates, whose value gradient was clipped away.",
    "val/ratio": "Mean probability ratio between the policy under update and the one that sampled.",
    "val/ratio_var": "Variance of that ratio.",
    "val/first_ratio_error": "Largest |ratio - 1| in the first update of the iteration: 0 but for rounding.",
    "val/mean": "Mean value of the critic before the updates.",
    "val/explained_variance": "1 - Var(return - value) / Var(return), before the updates.",
    "val/num_eos_tokens": "Completions of the iteration that stopped by themselves.",
    "gradient_variance/<estimator>": "With log_gradient_variance: trace of the covariance, over completions, of the"
    " policy gradient of one completion at the weights that sampled it, by the advantages of that estimator before"
    " whitening.",
    "time/gradient_variance": "Seconds spent on measuring it.",
    "sampling/logp_gap": "Mean |difference| of a token's log-probability between sampler and trainer.",
    "sampling/temperature": "With temperature_end: temperature of the iteration.",
    "sampling/first_greedy_tokens": "With first_greedy_tokens_end: first_greedy_tokens of the iteration.",
    "sampling/servers": "With use_vllm, how many servers sampled completions of the iteration, over all ranks.",
    "sampling/importance_weight": "Mean weight that importance_sampling_cap gave a token.",
    "completions/mean_length": "Mean tokens of a completion, the stop token included.",
    "completions/min_length": "Shortest completion, in tokens.",
    "completions/max_length": "Longest completion, in tokens.",
    "completions/clipped_ratio": "Share of completions cut off by the length limit.",
    "episodes/turns": "With an environment: mean completions of an episode.",
    "episodes/truncated": "With an environment: share of episodes that a limit ended; beyond it, the critic's value"
    " counts.",
    "episodes/<name>": "With an environment: mean of a number in the info of an episode's last turn.",
    "loss": "Mean total loss of the updates since the last log, a withheld one counting as 0.",
    "grad_norm": "Norm of the gradient of the last update, before clipping; 0 when early_stop_kl withheld it or its"
    " minibatch was empty.",
    "lr": "Learning rate of the last update.",
    "eval_reward": "As reward, on completions sampled for the evaluation prompts.",
    "eval_kl": "As objective/kl, on the evaluation prompts.",
}


def iteration_metrics(
    trajectories: Sequence[Trajectory], rewards: Sequence[Reward], experience: Experience
) -> dict[str, float]:
    """Return metrics of all ranks' completions, of PPO's objective, and of the critic's fit, before the updates.

    Each rank gives its own completions; every rank takes part and gets the numbers of all.
    """
    mask = experience.mask
    counted = mask.any(dim=1)
    scores = global_mean(experience.scores + experience.scores_per_token.sum(dim=1), counted).item()
    kl = mean_sequence_kl(experience)
    assert experience.returns is not None
    explained = explained_variance(experience.values, experience.returns, mask, moments=global_moments)
    stopped = torch.tensor(sum(trajectory.completion.stopped for trajectory in trajectories))
    return {
        "objective/scores": scores,
        "objective/kl": kl,
        "objective/kl_coef": experience.kl_coef,
        "objective/entropy": global_mean(masked_sum(-experience.logprobs, mask, dim=1), counted).item(),
        "objective/non_score_reward": -experience.kl_coef * kl,
        "objective/rlhf_reward": scores - experience.kl_coef * kl,
        "policy/entropy_avg": global_mean(experience.entropy, mask).item(),
        "val/mean": global_mean(experience.values, mask).item(),
        "val/explained_variance": explained.item(),
        "val/num_eos_tokens": float(global_sum(stopped)),
        "sampling/logp_gap": global_mean((experience.sampler_logprobs - experience.logprobs).abs(), mask).item(),
        **rollout_metrics(trajectories, rewards),
    }


def evaluation_metrics(
    trajectories: Sequence[Trajectory], rewards: Sequence[Reward], passes: Sequence[ForwardPass]
) -> dict[str, float]:
    """Return rewards, KL and lengths of completions sampled for evaluation prompts, over all ranks."""
    kls = _of_all([each.kl.sum().item() for each in passes])
    return {"kl": _mean(kls), **rollout_metrics(trajectories, rewards)}


def mean_sequence_kl(experience: Experience) -> float:
    """Return mean over the counted completions of all ranks of the KL summed over counted tokens, in nats."""
    return global_mean(masked_sum(experience.kl, experience.mask, dim=1), experience.mask.any(dim=1)).item()


def rollout_metrics(trajectories: Sequence[Trajectory], rewards: Sequence[Reward]) -> dict[str, float]:
    """Return rewards and lengths of the completions of all ranks, each of which gives its own."""
    totals = _of_all([reward.total for reward in rewards])
    lengths = _of_all([sampled_tokens(trajectory) for trajectory in trajectories])
    stopped = _of_all([trajectory.completion.stopped for trajectory in trajectories])
    metrics = {
        "reward": _mean(totals),
        "reward_std": _std(totals),
        "completions/mean_length": _mean(lengths),
        "completions/min_length": float(min(lengths)),
        "completions/max_length": float(max(lengths)),
        "completions/clipped_ratio": 1 - _mean(stopped),
        "rewards/unscored": (len(lengths) - len(totals)) / len(lengths),
    }
    turns = _of_all([float(each.info.get("turns", 0.0)) for each in trajectories if each.messages is not None])
    if turns:
        truncated = _of_all([float(each.truncated) for each in trajectories])
        infos = mean_of_each(gather_in_order([_numbers_of_infos(trajectories)]))
        metrics |= {f"episodes/{name}": mean for name, mean in infos.items()}
        metrics |= {"episodes/turns": _mean(turns), "episodes/truncated": _mean(truncated)}
    names = gather_in_order([list(rewards[0].parts) if rewards else []])  # a rank may have no completion
    for name in dict.fromkeys(name for rank_names in names for name in rank_names):
        values = _of_all([reward.parts[name] for reward in rewards])
        metrics[f"rewards/{name}/mean"] = _mean(values)
        metrics[f"rewards/{name}/std"] = _std(values)
    return metrics


def _numbers_of_infos(trajectories: Sequence[Trajectory]) -> dict[str, list[float]]:
    """Return the numbers in the info of each episode's last turn, by name."""
    found: dict[str, list[float]] = {}
    for trajectory in trajectories:
        for name, value in trajectory.info.items():
            if not isinstance(value, str):
                found.setdefault(name, []).append(float(value))
    return found


def sampled_tokens(trajectory: Trajectory) -> int:
    """Return the tokens of a completion, or those that the policy sampled in an episode."""
    return len(trajectory.completion.ids) if trajectory.messages is None else sum(trajectory.completion_mask)


def update_metrics(sums: dict[str, float]) -> dict[str, float]:
    """Return means over tokens and updates, from sums over both and over ranks, by the keys of `ppo_loss`."""
    sums = dict(sums)
    tokens, text_loss, text_tokens = sums.pop("tokens"), sums.pop("text_loss", None), sums.pop("text_tokens", 0.0)
    metrics = {name: total / tokens for name, total in sums.items()}
    if "val/ratio" in metrics and "val/ratio_deviation_squared" in metrics:
        around_one = metrics.pop("val/ratio_deviation_squared")
        metrics["val/ratio_var"] = max(around_one - (metrics["val/ratio"] - 1) ** 2, 0.0)
    if text_loss is not None:
        metrics["loss/ptx_avg"] = text_loss / text_tokens
    return metrics


def mean_of_each(parts: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, float]:
    """Return the mean of all numbers of a name, those of every part (rank) together."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: _mean([number for part in parts for number in part.get(name, ())]) for name in names}


def _of_all(numbers: Sequence[float | None]) -> list[float]:
    """Return the numbers of all ranks, without those that are None."""
    return [number for number in gather_numbers(numbers) if number is not None]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _std(values: Sequence[float]) -> float:
    mean = _mean(values)
    return math.sqrt(_mean([(value - mean) ** 2 for value in values])) if values else math.nan
