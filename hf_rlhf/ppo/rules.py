"""The rules that the flags of `PPOConfig` keep: of each flag whether it holds, and the rule in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_rlhf.distributed import asked_for
from hf_rlhf.errors import InputError
from hf_rlhf.ops.kl import FULL_KL, KL_ESTIMATORS
from hf_rlhf.ops.preference import COMBINATIONS

if TYPE_CHECKING:
    from hf_rlhf.ppo.config import PPOConfig

KL_CHOICES = (*KL_ESTIMATORS, FULL_KL)
ESTIMATORS = ("gae", "reinforce", "monte_carlo", "running_mean", "value", "group", "leave_one_out", "dae")
_OF_GROUPS = ("group", "leave_one_out")
_OF_CRITICS = ("value", "dae")
CRITICS = ("value_head", "adapter", "model")

Rules = dict[str, tuple[bool, str]]


def require_rules(config: PPOConfig) -> None:
    """Raise `InputError` for the first flag that breaks its rule."""
    for rules in (
        rules_of_algorithm,
        rules_of_models,
        rules_of_sampling,
        rules_of_episodes,
        rules_of_rewards,
        rules_of_trainer,
    ):
        for name, (holds, rule) in rules(config).items():
            if not holds:
                raise InputError(f"{name}={getattr(config, name)} is invalid: it must be {rule}.")


def rules_of_algorithm(config: PPOConfig) -> Rules:
    """Return the rules of the algorithm: losses, KL and estimates."""
    return {
        "advantage_estimator": _rule_of_estimator(config),
        "log_gradient_variance": (
            config.log_gradient_variance is None or (config.log_gradient_variance >= 1 and not _sharded()),
            "at least 1, and omitted under FSDP and DeepSpeed, where no rank has the whole gradient",
        ),
        "baseline_decay": (0 <= config.baseline_decay <= 1, "from 0 to 1"),
        "num_ppo_epochs": (config.num_ppo_epochs >= 1, "at least 1"),
        "kl_estimator": (config.kl_estimator in KL_CHOICES, f"one of {', '.join(KL_CHOICES)}"),
        "kl_in_loss": (
            not config.kl_in_loss or config.kl_estimator != "k1",
            "false with kl_estimator k1, whose gradient is zero on average; take k2 or full",
        ),
        "kl_coef": (config.kl_coef >= 0, "0 or above"),
        "kl_target": (config.kl_target is None or config.kl_target > 0, "above 0"),
        "kl_horizon": (config.kl_horizon >= 1, "at least 1"),
        "cliprange": (config.cliprange > 0, "above 0"),
        "cliprange_value": ((config.cliprange_value or 0) >= 0, "0 (off) or above"),
        "cliprange_high": (config.cliprange_high is None or config.cliprange_high > 0, "above 0"),
        "dual_clip": (config.dual_clip is None or config.dual_clip > 1, "above 1"),
        "ratio_threshold": (config.ratio_threshold is None or config.ratio_threshold > 1, "above 1"),
        "early_stop_kl": (config.early_stop_kl is None or config.early_stop_kl > 0, "above 0"),
        "importance_sampling_cap": (
            not config.importance_sampling_cap or config.importance_sampling_cap >= 1,
            "at least 1, or 0 (off)",
        ),
        "ref_model_sync_iterations": (
            config.ref_model_sync_iterations is None or config.ref_model_sync_iterations >= 1,
            "at least 1",
        ),
        "vf_coef": (config.vf_coef >= 0, "0 or above"),
        "entropy_coef": (config.entropy_coef >= 0, "0 or above"),
        "ptx_coef": (config.ptx_coef >= 0, "0 or above"),
        "max_ptx_length": (config.max_ptx_length >= 2, "at least 2"),
        "gamma": (0 <= config.gamma <= 1, "from 0 to 1"),
        "lam": (0 <= config.lam <= 1, "from 0 to 1"),
        "critic_lam": (config.critic_lam is None or 0 <= config.critic_lam <= 1, "from 0 to 1"),
    }


def _rule_of_estimator(config: PPOConfig) -> tuple[bool, str]:
    name = config.advantage_estimator
    if name in _OF_GROUPS and config.num_generations < 2:
        return False, "with num_generations of 2 or more, since it compares the completions of one prompt"
    if name in _OF_CRITICS and config.vf_coef == 0:
        return False, "with vf_coef above 0, without which nothing learns the values that it reads"
    if name == "dae" and _sharded():
        return False, "another one under FSDP and DeepSpeed, which would shard the advantage head"
    return name in ESTIMATORS, f"one of {', '.join(ESTIMATORS)}"


def _sharded() -> bool:
    return asked_for("ACCELERATE_USE_FSDP") or asked_for("ACCELERATE_USE_DEEPSPEED")


def rules_of_models(config: PPOConfig) -> Rules:
    """Return the rules of what is trained: layers, critic and value head."""
    return {
        "num_layers_unfrozen": (
            config.num_layers_unfrozen is None or config.num_layers_unfrozen >= 1,
            "at least 1, or omitted to train every block",
        ),
        "critic": (config.critic in CRITICS, f"one of {', '.join(CRITICS)}"),
        "critic_warmup_iterations": (config.critic_warmup_iterations >= 0, "0 or above"),
        "critic_learning_rate": ((config.critic_learning_rate or 0) >= 0, "0 or above"),
        "value_head_mlp_size": (config.value_head_mlp_size is None or config.value_head_mlp_size >= 1, "at least 1"),
        "value_head_init_std": (config.value_head_init_std >= 0, "0 or above"),
        "value_head_detach": (
            not config.value_head_detach or config.critic == "value_head",
            "false: only critic=value_head shares weights with the policy",
        ),
    }


def rules_of_episodes(config: PPOConfig) -> Rules:
    """Return the rules of the episodes of an environment."""
    return {
        "max_turns": (config.max_turns >= 1, "at least 1"),
        "max_episode_length": (
            config.max_episode_length is None or config.max_episode_length >= config.max_completion_length,
            "at least max_completion_length, for one completion",
        ),
        "max_failed_episodes": (0 <= config.max_failed_episodes <= 1, "from 0 to 1"),
    }


def rules_of_sampling(config: PPOConfig) -> Rules:
    """Return the rules of prompts and sampling."""
    continuous = config.use_transformers_continuous_batching
    greedy_tokens = {name: getattr(config, name) for name in ("first_greedy_tokens", "first_greedy_tokens_end")}
    return {
        "num_generations": (
            config.num_generations >= 1 and config.rank_batch_size % max(config.num_generations, 1) == 0,
            f"at least 1, and a divisor of the {config.rank_batch_size} completions that each rank samples in an"
            " iteration",
        ),
        "rollout_forward_batch_size": (config.rollout_forward_batch_size >= 1, "at least 1"),
        "reward_while_sampling": (
            not config.reward_while_sampling or config.generation_batch_size is not None,
            "given with generation_batch_size, which says how many completions are sampled, then rewarded, at once",
        ),
        "use_vllm": (
            not (config.use_vllm and config.reward_while_sampling and config.world_size > 1),
            "omitted with reward_while_sampling on several ranks: each samples parts of its own, and all hand the"
            " adapter to the server together",
        ),
        "use_transformers_continuous_batching": (
            not (config.use_transformers_continuous_batching and config.use_vllm),
            "omitted with use_vllm: one of the two samples",
        ),
        "generation_batch_size": (
            (config.generation_batch_size is None or config.generation_batch_size >= 1)
            and (
                config.generation_batch_size is None
                or not config.use_transformers_continuous_batching
                or config.reward_while_sampling
            ),
            "at least 1, and omitted with use_transformers_continuous_batching, whose max_requests_per_batch says it",
        ),
        "transformers_continuous_batching_config": (
            config.transformers_continuous_batching_config is None or config.use_transformers_continuous_batching,
            "omitted without use_transformers_continuous_batching",
        ),
        "vllm_server_timeout": (config.vllm_server_timeout > 0, "above 0"),
        "vllm_server_base_url": (
            config.vllm_server_base_url is None or (config.use_vllm and config.vllm_python is None),
            "omitted with vllm_python, which starts a server of the run's own, and without use_vllm",
        ),
        "vllm_server_base_urls": (
            config.vllm_server_base_urls is None or (config.use_vllm and config.vllm_python is None),
            "omitted with vllm_python, which starts a server of the run's own, and without use_vllm",
        ),
        "vllm_python": (config.vllm_python is None or config.use_vllm, "omitted without use_vllm"),
        "vllm_server_args": (
            config.vllm_server_args is None or config.vllm_python is not None,
            "omitted without vllm_python: a server that is running already has its arguments",
        ),
        "stop_strings": (not isinstance(config.stop_strings, str), "a list of strings"),
        "stop_token_ids": (not isinstance(config.stop_token_ids, int), "a list of ids"),
        "temperature": (config.temperature > 0, "above 0: a greedy policy has nothing to learn from its samples"),
        "temperature_end": (
            config.temperature_end is None or config.temperature_end > 0,
            "above 0: a greedy policy has nothing to learn from its samples",
        ),
        **{
            name: (
                (count or 0) == 0 or (0 < count < config.max_completion_length and not (config.use_vllm or continuous)),
                "at least 0 and below max_completion_length, which leaves a token to learn from, and 0 with use_vllm or"
                " use_transformers_continuous_batching, which draw all tokens of a completion alike",
            )
            for name, count in greedy_tokens.items()
        },
        "overlong_prompts": (
            config.overlong_prompts in ("error", "filter", "truncate_left"),
            "error, filter or truncate_left",
        ),
    }


def rules_of_rewards(config: PPOConfig) -> Rules:
    """Return the rules of how rewards are weighted, shaped and combined."""
    return {
        "reward_weights": (not isinstance(config.reward_weights, (int, float)), "a list of numbers"),
        "reward_clips": (
            config.reward_clips is None
            or (isinstance(config.reward_clips, list) and all(clip > 0 for clip in config.reward_clips)),
            "a list of numbers above 0, inf for a reward that is not clipped",
        ),
        "reward_normalize": (
            config.reward_normalize is None
            or {str(each).lower() for each in config.reward_normalize} <= {"true", "false"},
            "a list of true and false",
        ),
        "ensemble_reward": (
            config.ensemble_reward is None or config.ensemble_reward in COMBINATIONS,
            f"one of {', '.join(COMBINATIONS)}",
        ),
        "ensemble_std_coef": (config.ensemble_std_coef is None or config.ensemble_std_coef >= 0, "0 or above"),
    }


def rules_of_trainer(config: PPOConfig) -> Rules:
    """Return the rules of records, and of flags of `TrainingArguments` that have one value for PPO."""
    return {
        "log_trajectories": (config.log_trajectories is None or config.log_trajectories >= 1, "at least 1"),
        "num_logged_trajectories": (config.num_logged_trajectories >= 1, "at least 1"),
        "logging_nan_inf_filter": (not config.logging_nan_inf_filter, "false: it logs a NaN loss as 0"),
        "remove_unused_columns": (not config.remove_unused_columns, "false: rewards read the columns"),
        "ignore_data_skip": (config.ignore_data_skip, "true: there are no batches to skip when a run resumes"),
        "neftune_noise_alpha": (
            config.neftune_noise_alpha is None,
            "omitted: with noise in the embeddings, the policy that is trained is not the one that samples",
        ),
        "label_smoothing_factor": (config.label_smoothing_factor == 0, "0: PPO has no labels"),
        "auto_find_batch_size": (not config.auto_find_batch_size, "false: it would change the batch algebra"),
        "hub_strategy": (
            not config.push_to_hub or str(config.hub_strategy) in ("HubStrategy.END", "end"),
            "end: what Trainer pushes during training would lack the value head",
        ),
        "total_episodes": (config.total_episodes is None or config.max_steps <= 0, "omitted when max_steps is given"),
    }
