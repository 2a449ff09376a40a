"""The parts of a PPO run, built from the arguments of `PPOTrainer`: data, policy, rewards and engine."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from datasets import IterableDataset
from torch import nn

from hf_rlhf.data.prepared import PreparedSet, rows_of
from hf_rlhf.data.prompts import prepare_prompt_set, prepare_prompts, prompt_limit, prompt_settings
from hf_rlhf.data.rows import LoadedRows, read_columns, require_rows
from hf_rlhf.data.texts import prepare_ptx_set, text_settings
from hf_rlhf.data.tokens import with_row_options
from hf_rlhf.distributed import asked_for, failing_together
from hf_rlhf.errors import InputError
from hf_rlhf.models.adapted import load_policy
from hf_rlhf.models.adapter_files import adapter_folder
from hf_rlhf.models.adapters import POLICY, base_of, is_peft_model
from hf_rlhf.models.advantage_head import AdvantageHead
from hf_rlhf.models.backbone import state_width
from hf_rlhf.models.critics import build_critic
from hf_rlhf.models.load import load_tokenizer
from hf_rlhf.models.policy import PolicyWithValue, wrap_policy
from hf_rlhf.models.precision import native_dtype
from hf_rlhf.models.references import named_reference
from hf_rlhf.ppo.config import EVALUATED, PPOConfig
from hf_rlhf.ppo.launch import require_launcher, rewards_share_base
from hf_rlhf.ppo.lengths import check_context_length, require_positions
from hf_rlhf.rewards.cache import RewardCache
from hf_rlhf.rewards.calls import takes_by_name
from hf_rlhf.rewards.contract import Rewards
from hf_rlhf.rewards.learned import LearnedReward
from hf_rlhf.rewards.sources import require_functions, resolve_rewards
from hf_rlhf.rollout.continuous_batching import ContinuousBatchingEngine, require_batchable
from hf_rlhf.rollout.engines import Engine, TransformersEngine
from hf_rlhf.rollout.vllm.adapter import require_servable
from hf_rlhf.rollout.vllm.completion import logprobs_wanted, vocabulary_of
from hf_rlhf.rollout.vllm.engine import VLLMEngine
from hf_rlhf.rollout.vllm.server import VLLMServer, server_arguments
from hf_rlhf.training.best import require_best_metric
from hf_rlhf.types import Model

VLLM_FOLDER = "vllm"  # in output_dir: adapters for the server, and its log


class PPOData(NamedTuple):
    """The data of a run, checked and tokenized."""

    prepared_prompts: Any  # a PreparedSet or a stream; None for a loop that brings its own prompts
    prepared_evaluation: Any  # a PreparedSet, or several by name; None without evaluation
    texts: Any  # rows of PPO-ptx; None without
    longest_completion: int  # tokens behind a prompt: of a completion, or of an episode of an environment

    @property
    def prompts(self) -> Any:
        """Rows with `prompt` and `prompt_ids`."""
        return rows_of(self.prepared_prompts)

    @property
    def evaluation(self) -> Any:
        """Rows with `prompt` and `prompt_ids`, or several sets of them by name."""
        return rows_of(self.prepared_evaluation)

    @property
    def num_prompts(self) -> int | None:
        """Number of prompts, None where it is unknown."""
        return None if self.prompts is None or isinstance(self.prompts, IterableDataset) else len(self.prompts)


def require_arguments(args: PPOConfig, optimizers: tuple, environment: Any = None) -> None:
    """Raise `InputError` for arguments of `PPOTrainer` in another order, and those that exclude each other."""
    if not isinstance(args, PPOConfig):
        raise InputError(
            f"args is {type(args).__name__}, not PPOConfig; the order is PPOTrainer(model, reward_funcs, args)"
        )
    if optimizers[0] is not None and args.critic_learning_rate is not None:
        raise InputError(
            "critic_learning_rate is for the optimizer that the trainer makes; give yours a parameter group for the"
            " critic, or give only one of the two"
        )
    if environment is not None and args.overlong_penalty:
        raise InputError(
            f"overlong_penalty={args.overlong_penalty} is invalid with an environment: it compares all completions of"
            " an episode with max_completion_length, the limit of one. Omit it, or set length_penalty."
        )
    require_launcher(args)


def load_policy_tokenizer(model: str | Model):
    """Load the tokenizer of a model, or of the path or name of one."""
    return load_tokenizer(adapter_folder(model if isinstance(model, str) else model.config._name_or_path))


def prepare_data(
    train_dataset, eval_dataset, ptx_dataset, tokenizer, args: PPOConfig, *, episodes: bool = False
) -> PPOData:
    """Check and tokenize the sets of a run. Raises `InputError`, also for fewer prompts than an iteration takes.

    `episodes` says that an environment answers to completions.
    """
    data = PPOData(
        prepared_prompts(train_dataset, tokenizer, args, "train_dataset"),
        prepared_evaluation(eval_dataset, tokenizer, args),
        prepared_texts(ptx_dataset, tokenizer, args),
        args.longest_episode if episodes else args.max_completion_length,
    )
    if data.num_prompts is not None:
        require_rows(data.prompts, args.prompts_per_iteration, source="train_dataset", why=args.batch_algebra())
    return data


def prepared_prompts(dataset, tokenizer, args: PPOConfig, source: str) -> Any:
    """Return the set with its prompts checked and tokenized, one that was prepared before as it is; None for None."""
    length, kwargs, overlong = args.max_prompt_length, args.chat_template_kwargs, args.overlong_prompts
    if dataset is None:
        return None
    if isinstance(dataset, PreparedSet):
        return dataset.require_made_with(prompt_settings(tokenizer, length, overlong, kwargs), source=source)
    settings: dict[str, Any] = {"chat_template_kwargs": kwargs}
    if isinstance(dataset, IterableDataset):
        settings |= {"max_prompt_length": length, "overlong_prompts": overlong}
        return prepare_prompts(dataset, tokenizer, source=source, **settings)
    settings |= {"limit": prompt_limit(length, overlong), "overlong": overlong}
    return prepare_prompt_set(LoadedRows.given(dataset, source=source), tokenizer, role=source, **settings)


def prepared_evaluation(dataset, tokenizer, args: PPOConfig, source: str = "eval_dataset") -> Any:
    """Return one set, or each of several by name."""
    if dataset is None:
        return None
    if isinstance(dataset, IterableDataset):
        raise InputError(
            f"{source} is an IterableDataset: its length is unknown. Pass a Dataset: Dataset.from_list(list(...))"
        )
    if isinstance(dataset, Mapping):
        return {key: prepared_evaluation(value, tokenizer, args, key) for key, value in dataset.items()}
    return prepared_prompts(dataset, tokenizer, args, source)


def prepared_texts(dataset, tokenizer, args: PPOConfig):
    """Return the texts of PPO-ptx, when both they and their weight are given; None for neither."""
    if (dataset is None) != (args.ptx_coef == 0):
        raise InputError("ptx_dataset and ptx_coef belong together: give both, or neither")
    if dataset is None:
        return None
    source, length, kwargs = "ptx_dataset", args.max_ptx_length, args.chat_template_kwargs
    if isinstance(dataset, PreparedSet):
        return dataset.require_made_with(text_settings(tokenizer, length, kwargs), source=source).dataset
    settings: dict[str, Any] = {"max_ptx_length": length, "chat_template_kwargs": kwargs}
    return prepare_ptx_set(LoadedRows.given(dataset, source=source), tokenizer, role=source, **settings).dataset


def require_scorable(rewards: Rewards, prepared, tokenizer, args: PPOConfig, source: str) -> None:
    """Raise `InputError` for prepared prompts that are too long for a reward model once they are answered.

    Tried are its chat template, and the longest prompt with a completion against its positions; of a stream, the first.
    """
    if isinstance(prepared, Mapping):
        for key, part in prepared.items():
            require_scorable(rewards, part, tokenizer, args, key)
        return
    learned = [function for function in rewards.functions if isinstance(function, LearnedReward)]
    if prepared is None or not learned:
        return
    if isinstance(prepared, IterableDataset):
        columns = {name: [value] for name, value in next(iter(prepared)).items()}
    else:
        dataset = prepared.dataset
        columns = read_columns(dataset, with_row_options(["prompt"], dataset.column_names), source=source)
    for reward in learned:
        reward.require_prompts(
            columns["prompt"],
            columns,
            source=source,
            max_completion_length=args.max_completion_length,
            same_tokens=reward.tokenizer.get_vocab() == tokenizer.get_vocab(),
            lengths=prepared.lengths_for(reward.tokenizer) if isinstance(prepared, PreparedSet) else None,
        )


def evaluation_rows(dataset, rewards: Rewards | None, tokenizer, args: PPOConfig) -> Any:
    """Prepare a set that is given to `evaluate`, and return its rows.

    Raises `InputError` for what `prepared_evaluation` refuses, and for prompts that a reward model cannot take.
    """
    prompts = prepared_evaluation(dataset, tokenizer, args)
    if rewards is not None:
        require_scorable(rewards, prompts, tokenizer, args, "eval_dataset")
    return rows_of(prompts)


def require_measured_best(args: PPOConfig, rewards: Rewards, eval_sets) -> None:
    """Raise `InputError` when no evaluation on `eval_sets` can measure `metric_for_best_model`.

    A reward that names `log_metric` among its arguments may measure anything.
    """
    if eval_sets is None or any(takes_by_name(function, "log_metric") for function in rewards.functions):
        return
    names = [each for name in EVALUATED for each in _of_each_reward(name, rewards.names)]
    if isinstance(eval_sets, Mapping):
        names = [f"{key}_{name}" for key in eval_sets for name in names]
    require_best_metric(args, names)


def _of_each_reward(metric: str, names: Sequence[str]) -> list[str]:
    return [metric.replace("<name>", name) for name in names] if "<name>" in metric else [metric]


def require_roles_of_their_own(model, ref_model, value_model, reward_funcs) -> None:
    """Raise `InputError` when one model object is given two roles: training one would freeze or change the other."""
    rewards = reward_funcs if isinstance(reward_funcs, (list, tuple)) else [reward_funcs]
    roles = {"model": model, "ref_model": ref_model, "value_model": value_model}
    roles |= {f"reward_funcs[{number}]": reward for number, reward in enumerate(rewards)}
    seen: dict[int, str] = {}
    for role, given in roles.items():
        if isinstance(given, nn.Module):
            other = seen.setdefault(id(base_of(given)), role)
            if other != role:
                raise InputError(
                    f"{other} and {role} are the same model; load it twice (copy.deepcopy), or leave one out"
                )


def build_policy(
    model: str | Model,
    args: PPOConfig,
    data: PPOData,
    *,
    peft_config=None,
    ref_model: str | Model | None = None,
    value_model: Model | None = None,
) -> PolicyWithValue:
    """Build policy, critic and reference in one module. Raises `InputError` for models that do not fit."""
    if isinstance(model, str):
        model = load_policy(model, adds_adapter=peft_config is not None, dtype=native_dtype(args.device))
    follows = args.ref_model_sync_iterations is not None
    if follows and ref_model is not None:
        raise InputError("ref_model stays what it is, so it cannot go with ref_model_sync_iterations")
    wrapped = wrap_policy(
        model,
        peft_config,
        num_layers_unfrozen=args.num_layers_unfrozen,
        keep_reference=follows,
        own_reference=ref_model is not None,
    )
    if isinstance(ref_model, str):
        ref_model = named_reference(wrapped, ref_model)
    critic = build_critic(
        args.critic,  # pyright: ignore
        wrapped,
        start=args.critic_path,
        value_model=value_model,
        peft_config=wrapped.peft_config[POLICY] if is_peft_model(wrapped) else None,
        num_layers_unfrozen=args.num_layers_unfrozen,
        mlp_size=args.value_head_mlp_size,
        init_std=args.value_head_init_std,
        detach=args.value_head_detach,
    )
    width = state_width(base_of(getattr(critic, "model", wrapped)))
    if critic.head.hidden_size != width:
        raise InputError(
            f"the value head of critic_path={args.critic_path!r} reads states of size {critic.head.hidden_size}, and"
            f" the model's have size {width}; it belongs to another model"
        )
    _require_same_vocabulary(wrapped, ref_model, "ref_model")
    _require_same_vocabulary(wrapped, getattr(critic, "model", None), "the critic's model")
    policy = PolicyWithValue(wrapped, critic, ref_model, copy_frozen=asked_for("ACCELERATE_USE_FSDP"))
    if args.advantage_estimator == "dae":
        policy.advantage_head = AdvantageHead.of(wrapped)
    for name, each in (
        ("the model", wrapped),
        ("ref_model", ref_model),
        ("the critic", getattr(critic, "model", None)),
    ):
        if each is not None:
            check_context_length(each, args, data.longest_completion, name)
    if data.texts is not None:
        require_positions(policy, data.texts)
    if args.disable_dropout:
        policy.disable_dropout()
    return policy


def build_rewards(
    reward_funcs, reward_processing_classes, policy: PolicyWithValue, data: PPOData, tokenizer, args: PPOConfig
) -> Rewards | None:
    """Make reward functions of what `PPOTrainer` got; None where it got none, for a loop that brings its rewards.

    Raises `InputError` for sources that are no rewards, and for data that they cannot take.
    """
    if reward_funcs is None:
        return None
    rewards = resolve_rewards(
        reward_funcs,
        reward_processing_classes,
        policy=policy.model,
        share_base=rewards_share_base(args, sharded=asked_for("ACCELERATE_USE_FSDP")),
        device=args.device,
        **args.reward_parts(),
        ensemble_reward=args.ensemble_reward,
        ensemble_std_coef=args.ensemble_std_coef,
    )
    if args.reward_cache is not None:
        with failing_together():
            rewards.use_cache(RewardCache(args.reward_cache))
    if data.num_prompts is not None:
        rewards.require_columns(data.prompts.column_names)
    if args.reward_while_sampling:
        require_functions(rewards)
    require_measured_best(args, rewards, data.evaluation)
    require_scorable(rewards, data.prepared_prompts, tokenizer, args, "train_dataset")
    require_scorable(rewards, data.prepared_evaluation, tokenizer, args, "eval_dataset")
    return rewards


def build_engine(
    model: Model,
    tokenizer,
    args: PPOConfig,
    *,
    longest_completion: int | None = None,
    in_step: bool = False,
    sharded: bool = False,
) -> Engine:
    """Build the engine that samples completions: the model itself, its continuous batching, or vLLM servers.

    Raises `InputError` for what either cannot do.

    Args:
        model: the policy.
        tokenizer: its tokenizer.
        args: of the run.
        longest_completion: most tokens behind a prompt; `max_completion_length` by default.
        in_step: whether all ranks run each block together, since it is gathered whenever it runs.
        sharded: whether weights come and go between the steps of sampling, so that none can be recorded.
    """
    if args.use_transformers_continuous_batching:
        require_batchable(args.sampling)
        settings: Any = args.transformers_continuous_batching_config  # a dict by now, also when given as JSON
        return ContinuousBatchingEngine(model, tokenizer, settings)
    if not args.use_vllm:
        batch_size = args.generation_batch_size or args.rank_batch_size
        engine = TransformersEngine(model, tokenizer, batch_size, use_cuda_graphs=args.use_cuda_graphs and not sharded)
        engine.in_step = in_step
        return engine
    require_servable(model)
    max_logprobs = logprobs_wanted(args.sampling, vocabulary_of(model))
    folder = Path(str(args.output_dir)).absolute() / VLLM_FOLDER
    servers = args.vllm_addresses
    if args.vllm_python is not None:
        arguments = server_arguments(
            model,
            max_length=args.max_prompt_length + (longest_completion or args.max_completion_length),
            max_logprobs=max_logprobs,
            on_cpu=args.device.type == "cpu",
            more=args.vllm_server_args,
        )
        servers = VLLMServer(args.vllm_python, arguments, folder / "server.log")
    return VLLMEngine(
        model,
        tokenizer,
        servers,
        folder,
        timeout=args.vllm_server_timeout,
        concurrency=args.generation_batch_size,
    )


def _require_same_vocabulary(policy: Model, other: Model | None, name: str) -> None:
    """Raise `InputError` for a model that would read the policy's token ids by another vocabulary."""
    if other is None:
        return
    sizes = [base_of(model).config.get_text_config().vocab_size for model in (policy, other)]
    if sizes[0] != sizes[1]:
        raise InputError(
            f"{name} has a vocabulary of {sizes[1]} tokens and the policy one of {sizes[0]}; it reads the policy's"
            " token ids, so it needs the same tokenizer"
        )
