"""`PPOConfig`: every flag of the PPO trainer, on top of `transformers.TrainingArguments`."""

import json
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments

from hf_rlhf.compat.names import DEPRECATED, RENAMED, explain_names, new_name
from hf_rlhf.endpoints.addresses import server_address
from hf_rlhf.environments.episode import EpisodeLimits
from hf_rlhf.errors import InputError
from hf_rlhf.ops.kl import FULL_KL
from hf_rlhf.ppo.batch_sizes import SIZES, BatchSizes, Derived
from hf_rlhf.ppo.kl_control import AdaptiveKL, FixedKL, KLControl
from hf_rlhf.ppo.rules import ESTIMATORS, KL_CHOICES, require_rules
from hf_rlhf.ppo.scores import ScoreShaping
from hf_rlhf.rollout.sampling import Sampling, scheduled
from hf_rlhf.rollout.vllm.client import server_addresses
from hf_rlhf.training.best import settle_best_metric

VLLM_IMPORTANCE_CAP = 3.0  # as in TRL's GRPO
EVALUATED: dict[str, bool | None] = {
    "reward": True,
    "kl": False,
    "reward_std": None,
    "completions/mean_length": None,
    "completions/min_length": None,
    "completions/max_length": None,
    "completions/clipped_ratio": False,
    "rewards/unscored": False,
    "rewards/<name>/mean": True,
    "rewards/<name>/std": None,
}
"""The metrics of an evaluation, without `eval_`: whether more is better, None where that depends."""


_RENAMED = tuple(DEPRECATED.values())


def _flag(default, text: str):
    return field(default=default, metadata={"help": text})


@explain_names(RENAMED)
@dataclass
class PPOConfig(BatchSizes, TrainingArguments):
    """Arguments of `PPOTrainer`. Names follow TRL's PPO where it had one.

    One iteration samples `rollout_batch_size` completions and learns from them in `num_ppo_epochs` passes over
    `num_mini_batches` minibatches, one optimizer update each. Steps (`max_steps`, `save_steps`, `eval_steps`,
    `logging_steps`) count optimizer updates, as everywhere in transformers, and take effect at the end of the iteration
    in which they fall.
    """

    # Given as JSON on a command line
    _VALID_DICT_FIELDS = [*TrainingArguments._VALID_DICT_FIELDS, "transformers_continuous_batching_config"]

    # What PPO asks for differently from supervised training
    learning_rate: float = _flag(1e-5, "Peak learning rate. LoRA takes about ten times that of full fine-tuning.")
    adam_epsilon: float = _flag(1e-5, "Epsilon of AdamW; 1e-5 is the one PPO was tuned with.")
    logging_steps: float = _flag(1, "Log at the end of the iteration in which every so many updates fall.")
    logging_nan_inf_filter: bool = _flag(False, "Must stay off: a NaN loss is never logged as 0.")
    remove_unused_columns: bool = _flag(False, "Must stay off: columns of the dataset are passed to the rewards.")
    ignore_data_skip: bool = _flag(True, "Must stay on: the iteration alone says which prompts come next.")
    ddp_find_unused_parameters: bool | None = _flag(False, "Every trained parameter takes part in every update.")

    # Algorithm
    num_ppo_epochs: int = _flag(4, "Passes over the completions of an iteration.")
    num_mini_batches: int = _flag(  # pyright: ignore[reportAssignmentType]
        None, "Optimizer updates in each pass; by default what rollout_batch_size gives, and 1 without it."
    )
    rollout_batch_size: int = _flag(  # pyright: ignore[reportAssignmentType]
        None, "Completions per iteration, over all ranks; by default what num_mini_batches gives."
    )
    total_episodes: int | None = _flag(None, "Completions to train on in all; instead of max_steps or epochs.")
    gamma: float = _flag(1.0, "Discount per token.")
    advantage_estimator: str = _flag(
        "gae",
        f"How advantages are estimated: {', '.join(ESTIMATORS)}; see docs/how-to/estimators.md.",
    )
    lam: float = _flag(0.95, "Lambda of generalized advantage estimation (gae), for the policy's advantages.")
    baseline_decay: float = _flag(
        0.9, "With advantage_estimator=running_mean: weight of an iteration's returns, relative to those of the next."
    )
    critic_lam: float | None = _flag(None, "Lambda of the critic's targets; lam by default, 1 is Monte Carlo.")
    cliprange: float = _flag(0.2, "Clip range of the policy's probability ratio.")
    cliprange_high: float | None = _flag(None, "Upper clip range (DAPO's clip-higher); cliprange by default.")
    dual_clip: float | None = _flag(
        None, "Bound the loss of a token with negative advantage at this many times the advantage."
    )
    ratio_threshold: float | None = _flag(None, "Skip an update whose mean ratio is above this; old TRL used 10.")
    early_stop_kl: float | None = _flag(None, "End an iteration's updates once approxkl of one is above this (nats).")
    importance_sampling_cap: float | None = _flag(
        None,
        "Weight tokens by min(trainer's / sampler's probability, this), for a sampler with arithmetic of its own; by"
        f" default {VLLM_IMPORTANCE_CAP:g} with use_vllm and off without, 0 is off.",
    )
    entropy_coef: float = _flag(0.0, "Weight of the entropy bonus in the loss.")
    whiten_advantages: bool = _flag(True, "Give advantages mean 0 and variance 1 over the iteration.")
    disable_dropout: bool = _flag(True, "Switch dropout off, so that the ratio is 1 before the first update.")

    # Full fine-tuning
    num_layers_unfrozen: int | None = _flag(
        None,
        "Without LoRA, train only the last N blocks, the final norm, and a head that is not tied to the embeddings; all"
        " weights by default. With LoRA, use lora_layers.",
    )

    # KL to the reference
    kl_coef: float = _flag(0.05, "Weight of the KL to the reference; the start of it, if adaptive.")
    kl_estimator: str = _flag(
        "k1",
        f"KL of a token: {', '.join(KL_CHOICES)}; full sums over the vocabulary. Only k1 in the per-token"
        " rewards, and k2 or full with kl_in_loss, have the gradient of the KL.",
    )
    kl_in_loss: bool = _flag(False, "Put the KL into the loss, with its gradient, instead of the per-token rewards.")
    kl_target: float | None = _flag(None, "Adapt kl_coef so that the KL of a completion stays near this many nats.")
    kl_horizon: int = _flag(10_000, "Completions over which the adaptive kl_coef reacts.")
    ref_model_sync_iterations: int | None = _flag(None, "Copy the policy to the reference every so many iterations.")

    # Critic
    critic: str = _flag("value_head", "value_head (on the policy), adapter (LoRA of its own) or model (separate).")
    critic_path: str | None = _flag(
        None, "Where the critic starts: a trained reward model, or an earlier run's folder."
    )
    critic_learning_rate: float | None = _flag(None, "Peak learning rate of the critic; learning_rate by default.")
    critic_warmup_iterations: int = _flag(0, "Iterations at the start in which only the critic learns.")
    value_head_mlp_size: int | None = _flag(None, "Width of a hidden layer in the value head; linear by default.")
    value_head_init_std: float = _flag(0.0, "Standard deviation of the value head's random start; 0 starts at value 0.")
    value_head_detach: bool = _flag(False, "Keep the value loss out of the policy's weights (critic=value_head).")
    vf_coef: float = _flag(0.1, "Weight of the value loss.")
    cliprange_value: float | None = _flag(0.2, "Clip range of value updates; 0 switches clipping off.")

    # From rewards to scores
    reward_weights: list[float] | None = _flag(None, "A weight for each reward; 1 each by default.")
    reward_clips: list[float] | None = _flag(None, "A largest size for each reward; inf for none.")
    reward_normalize: list[str] | None = _flag(None, "For each reward, true to pay its z-score.")
    reward_cache: str | None = _flag(None, "Folder that keeps rewards over runs.")
    ensemble_reward: str | None = _flag(None, "Reward of an ensemble, instead of its own: mean, min or mean_minus_std.")
    ensemble_std_coef: float | None = _flag(None, "Lambda of mean_minus_std, instead of the ensemble's own.")
    use_score_scaling: bool = _flag(False, "Divide rewards by their running standard deviation.")
    use_score_norm: bool = _flag(False, "Also subtract their running mean (with use_score_scaling).")
    score_clip: float | None = _flag(None, "Clip scaled rewards to plus or minus this, before penalties.")
    missing_eos_penalty: float | None = _flag(None, "Subtracted from the score of a completion that did not stop.")
    length_penalty: float = _flag(0.0, "Subtracted from the score for each token of the completion.")
    overlong_penalty: float = _flag(0.0, "Subtracted at max_completion_length tokens, less before (overlong_buffer).")
    overlong_buffer: int = _flag(0, "Tokens before max_completion_length in which overlong_penalty sets in.")
    whiten_rewards: bool = _flag(
        False, "Scale per-token rewards to unit variance over the iteration; their mean stays."
    )

    # PPO-ptx
    ptx_coef: float = _flag(0.0, "Weight of a language-model loss on texts of a second dataset (InstructGPT).")
    max_ptx_length: int = _flag(512, "Longest of those texts, in tokens; longer ones are cut.")

    # Sampling
    max_prompt_length: int = _flag(512, "Longest prompt, in tokens.")
    chat_template_kwargs: dict | str | None = _flag(
        None,
        "Arguments of the policy's chat template, for prompts and texts of PPO-ptx, such as: "
        '{"enable_thinking": false}. A row\'s own column chat_template_kwargs wins.',
    )
    overlong_prompts: str = _flag("error", "What to do with longer prompts: error, filter or truncate_left.")
    num_generations: int = _flag(
        1,
        "Completions of each prompt in an iteration; rollout_batch_size counts completions, so it holds fewer prompts.",
    )
    max_completion_length: int = _flag(64, "Longest completion, in tokens.")
    temperature: float = _flag(1.0, "Sampling temperature; the policy that is trained is the one with it.")
    top_k: int = _flag(0, "Sample among the k most likely tokens; 0 is off.")
    top_p: float = _flag(1.0, "Sample among the most likely tokens with this total probability; 1 is off.")
    min_p: float = _flag(0.0, "Sample among tokens at least this likely relative to the likeliest; 0 is off.")
    first_greedy_tokens: int = _flag(
        0, "Take the likeliest token so many times at the start of a completion, then sample; those do not count."
    )
    temperature_end: float | None = _flag(
        None, "Temperature of the last iteration; it changes linearly over the run, by default not at all."
    )
    first_greedy_tokens_end: int | None = _flag(
        None, "first_greedy_tokens of the last iteration; it changes linearly over the run, by default not at all."
    )
    stop_strings: list[str] | None = _flag(None, "Strings that end a completion, besides the model's end tokens.")
    stop_token_ids: list[int] | None = _flag(None, "Token ids that end a completion, besides the model's end tokens.")
    generation_batch_size: int | None = _flag(None, "Completions sampled at once on each device; by default all.")
    reward_while_sampling: bool = _flag(
        False, "Call reward functions for each generation batch while the next is sampled; for those that wait."
    )
    rollout_forward_batch_size: int = _flag(64, "Sequences per forward pass where no gradient is needed.")
    reuse_trunk: bool = _flag(
        True,
        "Compute the lowest blocks, where they are not trained (lora_layers, num_layers_unfrozen), once per completion"
        " and iteration, and begin every pass and update above them. Takes memory for one hidden state of each token.",
    )
    gather_for_rollout: bool = _flag(
        True,
        "Under FSDP: hold all weights whole on each device while nothing trains. False gathers each block whenever it"
        " runs, for a model that does not fit: slower, as all ranks wait for each other at every token.",
    )
    padding_free: bool | None = _flag(
        None,
        "Compute without padding, where the model's code and its attention (sdpa) allow it; by default on a CPU, where"
        " it was measured.",
    )

    use_cuda_graphs: bool = _flag(
        True,
        "On a CUDA device, sample by replaying a recorded decoding step, instead of launching its kernels one by one,"
        " where the model's code allows it.",
    )
    use_transformers_continuous_batching: bool = _flag(
        False, "Sample by transformers' continuous batching: a finished completion makes room for the next prompt."
    )
    transformers_continuous_batching_config: dict | str | None = _flag(
        None, 'Fields of transformers\' ContinuousBatchingConfig, such as: {"max_memory_percent": 0.5}.'
    )

    # Episodes of an environment
    max_turns: int = _flag(8, "With an environment: most completions of an episode, which is truncated then.")
    max_episode_length: int | None = _flag(
        None,
        "With an environment: most tokens behind the prompt; by default what max_turns completions may have twice.",
    )
    max_failed_episodes: float = _flag(
        0.05, "With an environment: largest share of an iteration's episodes in which it may raise an exception."
    )

    # Sampling by a vLLM server
    use_vllm: bool = _flag(False, "Sample by a vLLM server, which gets the policy's LoRA adapter in each iteration.")
    vllm_server_base_url: str | None = _flag(None, "Address of a running server; http://127.0.0.1:8000 by default.")
    vllm_server_base_urls: list[str] | None = _flag(
        None, "Addresses of several running servers that share the sampling, instead of vllm_server_base_url."
    )
    vllm_server_timeout: float = _flag(240.0, "Seconds to wait for a server that does not answer, at any time.")
    vllm_python: str | None = _flag(
        None, "Python of an environment with vLLM: the run starts a server with it, and ends it."
    )
    vllm_server_args: str | None = _flag(None, "More arguments for that server, such as: --gpu-memory-utilization 0.3.")

    # Records
    log_gradient_variance: int | None = _flag(
        None,
        "Every so many iterations, measure the variance of the policy gradient under each advantage estimator; one"
        " or more backward passes for each completion.",
    )
    log_trajectories: int | None = _flag(
        None,
        "Every so many iterations, write completions token by token to trajectories/, with the numbers that the loss"
        " sees; see hf-rlhf show.",
    )
    num_logged_trajectories: int = _flag(16, "Completions written there in such an iteration, over all ranks.")
    num_logged_samples: int = _flag(4, "Completions written to samples.jsonl at each iteration and evaluation.")

    def __post_init__(self):
        settle_best_metric(self, EVALUATED)
        self.chat_template_kwargs = _mapping("chat_template_kwargs", self.chat_template_kwargs)
        super().__post_init__()
        self.settle_batch_sizes()
        self._check()
        if self.n_gpu > 1:
            raise InputError(
                f"{self.n_gpu} GPUs are visible to one process; start with `accelerate launch`, or make one visible"
                " with CUDA_VISIBLE_DEVICES"
            )

    def __setattr__(self, name: str, value: object) -> None:
        """Set a flag; of the batch sizes, the one that was not given follows."""
        new = new_name(name, SIZES + _RENAMED, type(self).__name__) if name in DEPRECATED else name
        super().__setattr__(new, value)
        if new in SIZES and self.__dict__.get("_settled"):
            self.settle_batch_sizes()

    def to_dict(self):
        """Like `TrainingArguments.to_dict`, but of `num_mini_batches` and `rollout_batch_size` only what was given."""
        return {
            name: value
            for name, value in super().to_dict().items()
            if not isinstance(getattr(self, name, None), Derived)
        }

    def _check(self) -> None:
        require_rules(self)
        self.sampling  # noqa: B018 - checks its own values
        self.vllm_addresses  # noqa: B018 - checks its own values
        self.score_shaping()

    @property
    def sampling(self) -> Sampling:
        """Sampling settings of the first iteration, and of all others unless they change over the run."""
        return self.sampling_at(0.0)

    def sampling_at(self, progress: float) -> Sampling:
        """Return the sampling settings at a place of the run, from 0 for the first iteration to 1 for the last."""
        return Sampling(
            max_completion_length=self.max_completion_length,
            temperature=scheduled(self.temperature, self.temperature_end, progress),
            first_greedy_tokens=round(scheduled(self.first_greedy_tokens, self.first_greedy_tokens_end, progress)),
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            stop_token_ids=tuple(self.stop_token_ids or ()),
            stop_strings=tuple(self.stop_strings or ()),
        )

    @property
    def episode_limits(self) -> EpisodeLimits:
        """Limits of the episodes of an environment; the trainer counts the failed ones of a whole iteration."""
        return EpisodeLimits(self.max_turns, self.longest_episode, 1.0, self.max_prompt_length)

    @property
    def longest_episode(self) -> int:
        """Most tokens behind the prompt of an episode, those of the environment included."""
        return self.max_episode_length or 2 * self.max_turns * self.max_completion_length

    @property
    def vllm_addresses(self) -> list[str]:
        """The vLLM servers that are running already, `http://127.0.0.1:8000` when none is named."""
        one, several = self.vllm_server_base_url, self.vllm_server_base_urls
        if several is None:
            return [server_address("vllm_server_base_url", one or "http://127.0.0.1:8000")]
        if one is not None:
            raise InputError(
                f"vllm_server_base_url={one} is invalid: vllm_server_base_urls is given too. Name all servers there."
            )
        return server_addresses("vllm_server_base_urls", several)

    @property
    def leaves_padding_out(self) -> bool:
        """`padding_free`, or what stands for it; not with `torch_compile`, which would compile anew for all lengths."""
        wanted = self.device.type == "cpu" if self.padding_free is None else self.padding_free
        return wanted and not self.torch_compile

    @property
    def importance_cap(self) -> float | None:
        """`importance_sampling_cap`, or what stands for it; None when tokens are not weighted."""
        if self.importance_sampling_cap is None:
            return VLLM_IMPORTANCE_CAP if self.use_vllm else None
        return self.importance_sampling_cap or None

    @property
    def value_clip(self) -> float | None:
        """`cliprange_value`, None when value updates are not clipped."""
        return self.cliprange_value or None

    @property
    def lam_of_critic(self) -> float:
        """Lambda of the critic's targets: `critic_lam`, or what stands for it."""
        return self.lam if self.critic_lam is None else self.critic_lam

    def reward_parts(self) -> dict[str, Any]:
        """Return weights, clips and normalization of the rewards, by the names of `resolve_rewards`."""
        normalize = self.reward_normalize and [str(each).lower() == "true" for each in self.reward_normalize]
        return {"weights": self.reward_weights, "clips": self.reward_clips, "normalize": normalize}

    def score_shaping(self) -> ScoreShaping:
        """Return the settings that turn rewards into scores."""
        return ScoreShaping(
            scale=self.use_score_scaling,
            center=self.use_score_norm,
            clip=self.score_clip,
            missing_eos_penalty=self.missing_eos_penalty or 0.0,
            length_penalty=self.length_penalty,
            overlong_penalty=self.overlong_penalty,
            overlong_buffer=self.overlong_buffer,
            max_completion_length=self.max_completion_length,
        )

    @property
    def full_kl_in_loss(self) -> bool:
        """True if every update needs the reference's whole distribution."""
        return self.kl_in_loss and self.kl_estimator == FULL_KL

    def kl_control(self) -> KLControl:
        """Return a fresh controller of the KL coefficient."""
        if self.kl_target is None:
            return FixedKL(self.kl_coef)
        return AdaptiveKL(self.kl_coef, self.kl_target, self.kl_horizon)


def _mapping(name: str, value: object) -> dict | None:
    """Return a setting that is a mapping, given as one or as JSON."""
    try:
        mapping = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        mapping = value
    if mapping is not None and not isinstance(mapping, dict):
        raise InputError(
            f'{name}={value!r} is invalid: it is no mapping. Write JSON, such as {{"enable_thinking": false}}'
        )
    return mapping
