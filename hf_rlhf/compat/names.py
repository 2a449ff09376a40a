"""Names that flags and arguments had in TRL's trainers; docs/how-to/migration.md says what changed besides."""

import difflib
import functools
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

from hf_rlhf.errors import InputError

Class = TypeVar("Class", bound=type)
Function = TypeVar("Function", bound=Callable[..., Any])

logger = logging.getLogger(__name__)

RENAMED = {
    # TRL 0.11 and before
    "adap_kl_ctrl": "kl_target",
    "early_stopping": "early_stop_kl",
    "exp_name": "run_name",
    "forward_batch_size": "per_device_train_batch_size",
    "horizon": "kl_horizon",
    "init_kl_coef": "kl_coef",
    "kl_penalty": "kl_estimator",
    "log_with": "report_to",
    "mini_batch_size": "per_device_train_batch_size",
    "model_name": "model_name_or_path",
    "optimize_cuda_cache": "torch_empty_cache_steps",
    "optimize_device_cache": "torch_empty_cache_steps",
    "ppo_epochs": "num_ppo_epochs",
    "push_to_hub_if_best_kwargs": "load_best_model_at_end",
    "query_dataset": "dataset_name",
    "reward_model": "reward_model_path",
    "target": "kl_target",
    "target_kl": "early_stop_kl",
    # TRL 0.12 to 1.12
    "local_rollout_forward_batch_size": "rollout_forward_batch_size",
    "num_sample_generations": "num_logged_samples",
    "response_length": "max_completion_length",
    "sft_model_path": "model_name_or_path",
    "stop_token_id": "stop_token_ids",
    # TRL's GRPO
    "beta": "kl_coef",
    "ds3_gather_for_generation": "gather_for_rollout",
    "epsilon": "cliprange",
    "epsilon_high": "cliprange_high",
    "num_iterations": "num_ppo_epochs",
    "ref_model_sync_steps": "ref_model_sync_iterations",
    "vllm_importance_sampling_cap": "importance_sampling_cap",
    "vllm_importance_sampling_clip_max": "importance_sampling_cap",
}
"""Names that a flag of PPO has elsewhere, and what it is called here."""

REPLACED = {
    "backward_batch_size": "follows from per_device_train_batch_size x gradient_accumulation_steps",
    "batch_size": 'is "rollout_batch_size" here, over all ranks; in TRL 0.11 it was that of each rank',
    "is_encoder_decoder": "is not needed: PPO trains decoder-only models",
    "is_peft_model": "is not needed: an adapter folder as model_name_or_path says it itself",
    "model_adapter_name": "is not needed: the adapter that model_name_or_path names is trained",
    "ref_adapter_name": "is not needed: the adapter that model_name_or_path names is the reference too",
    "steps": 'is called "total_episodes" here if it counts completions (TRL 0.11), "max_steps" if optimizer updates',
    "local_batch_size": "follows from the others (docs/batch_algebra.md)",
    "local_mini_batch_size": "follows from the others (docs/batch_algebra.md)",
    "micro_batch_size": "follows from per_device_train_batch_size x ranks",
    "num_total_batches": "follows from total_episodes / rollout_batch_size",
    "dataset_num_proc": "is not needed: prompts are tokenized in one process",
    "stop_token": "is not needed: the model's end tokens stop a completion. More: stop_token_ids, stop_strings",
    "tracker_project_name": 'is set by the tracker: "project" for trackio, WANDB_PROJECT in the environment for wandb',
}
"""Old names that became more than one flag, or none."""

OF_THE_LAUNCHER = {
    "strategy": "is a flag of plan; a run has that of accelerate launch --config_file (docs/how-to/several_gpus.md)",
    "num_processes": "is a flag of plan; a run has that of accelerate launch (docs/how-to/several_gpus.md)",
}
"""Flags of plan that a run takes from its launcher."""

DEPRECATED = {
    "skip_bad": "skip_bad_rows",
    "value_lam": "critic_lam",
    "score_while_sampling": "reward_while_sampling",
}
"""Flags by the names that they had in an earlier checkout, which are taken until 0.2, with a warning."""

RENAMED_METRICS = {"time/score": "time/reward", "time/evaluate": "time/forward_pass"}
"""Keys of metrics.jsonl in runs of an earlier checkout, and what they are called now."""

STEP_ARGUMENTS = {"scores": "rewards"}
"""Arguments of `PPOTrainer.step` by the names that they had in an earlier checkout, which are taken until 0.2."""

RENAMED_STAGES = {"score": "compute_rewards", "evaluate_policy": "forward_pass", "sample_and_score": "rollout"}
"""Stages of `PPOTrainer` by the names that they had in an earlier checkout, which are refused."""

TRAINER_ARGUMENTS = {
    "config": "args",
    "tokenizer": "processing_class",
    "dataset": "train_dataset",
    "reward_model": "reward_funcs",
    "ref_policy": "ref_model",
    "policy": "model",
}
"""Names that arguments of `PPOTrainer` had."""


_RENAMED_NOW = '"%s" in %s is called "%s" now. The old name works until 0.2: change it'


def unknown_name(name: str, known: Sequence[str], where: str, renamed: Mapping[str, str] = RENAMED) -> str:
    """Return the message for an unknown name: what it is called here, or what may have been meant."""
    key = name.replace("-", "_")
    if (new_name := renamed.get(key)) in known:
        return f'unknown key in {where}: "{name}" is called "{new_name}" here'
    if key in REPLACED and "num_ppo_epochs" in known:  # flags of PPO
        return f'unknown key in {where}: "{name}" {REPLACED[key]}'
    if key in OF_THE_LAUNCHER:
        return f'unknown key in {where}: "{name}" {OF_THE_LAUNCHER[key]}'
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    return f'unknown key "{name}" in {where}' + (
        f'; did you mean "{close[0]}"?' if close else ". See docs/reference/flags.md, or --help"
    )


def new_name(name: str, known: Sequence[str], where: str) -> str:
    """Return what a flag is called now, with a warning where it was renamed; `where` says where it stands."""
    new = DEPRECATED.get(name.replace("-", "_"))
    if new is None or new not in known or name in known:
        return name
    logger.warning(_RENAMED_NOW, name, where, new)
    return new


def with_new_names(values: Mapping[str, Any], known: Sequence[str], where: str) -> dict[str, Any]:
    """Return `values` by the names that flags have now. Raises `InputError` for a flag under both names."""
    renamed: dict[str, Any] = {}
    for name, value in values.items():
        new = new_name(name, known, where)
        if new != name and new in values:
            raise InputError(f'{where} has both "{new}" and its old name "{name}". Give "{new}" alone')
        renamed[new] = value
    return renamed


def take_old_arguments(renamed: Mapping[str, str]) -> Callable[[Function], Function]:
    """Decorate a method so that it takes keyword arguments by their old names too, with one warning for each.

    Raises `InputError` for an argument under both names.
    """

    def decorate(method: Function) -> Function:
        positions = {name: index for index, name in enumerate(inspect.signature(method).parameters)}
        warned: set[str] = set()

        @functools.wraps(method)
        def renaming(*args: Any, **kwargs: Any) -> Any:
            for old in kwargs.keys() & renamed.keys():
                new, where = renamed[old], f"{method.__name__}(...)"
                if new in kwargs or positions[new] < len(args):
                    raise InputError(f'{where} has both "{new}" and its old name "{old}". Give "{new}" alone')
                if old not in warned:
                    warned.add(old)
                    logger.warning(_RENAMED_NOW, old, where, new)
                kwargs[new] = kwargs.pop(old)
            return method(*args, **kwargs)

        return cast(Function, renaming)

    return decorate


def explain_names(renamed: Mapping[str, str]) -> Callable[[Class], Class]:
    """Decorate a class so that unknown keyword arguments raise `InputError` with the names used here."""

    def decorate(cls: Class) -> Class:
        init: Any = cls.__init__
        known = list(inspect.signature(init).parameters)[1:]

        @functools.wraps(init)
        def checked(self, *args: Any, **kwargs: Any) -> None:
            kwargs = with_new_names(kwargs, known, f"{cls.__name__}(...)")
            for name in kwargs:
                if name not in known:
                    raise InputError(unknown_name(name, known, f"{cls.__name__}(...)", renamed))
            init(self, *args, **kwargs)

        cls.__init__ = checked
        return cls

    return decorate
