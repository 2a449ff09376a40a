"""Conversion of the rewards that a user gives (functions, models, paths) to functions by the contract."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Pipeline, PreTrainedModel, TextClassificationPipeline

from hf_rlhf.errors import InputError
from hf_rlhf.models.adapter_files import adapter_folder
from hf_rlhf.models.adapters import base_of, is_peft_model
from hf_rlhf.models.load import load_tokenizer
from hf_rlhf.models.positions import positions
from hf_rlhf.models.precision import native_dtype
from hf_rlhf.models.reward_model import (
    SeparateRewardModel,
    free_name,
    load_reward_model,
    load_reward_tokenizer,
    require_reward_model,
)
from hf_rlhf.models.same_base import stands_on
from hf_rlhf.rewards.contract import RewardFunction, Rewards
from hf_rlhf.rewards.ensemble import EnsembleReward, ensemble_folder, load_ensemble
from hf_rlhf.rewards.learned import LearnedReward
from hf_rlhf.rewards.named import is_named_reward, make_reward, names_function, require_named, require_no_typing_slip
from hf_rlhf.types import Model

RewardSource = str | os.PathLike | PreTrainedModel | TextClassificationPipeline | RewardFunction


def resolve_rewards(
    sources: RewardSource | Sequence[RewardSource],
    tokenizers,
    *,
    policy: Model | None,
    device: torch.device,
    weights: Sequence[float] | None,
    clips: Sequence[float] | None = None,
    normalize: Sequence[bool] | None = None,
    share_base: bool = True,
    ensemble_reward: str | None = None,
    ensemble_std_coef: float | None = None,
) -> Rewards:
    """Load what is named by path, make what is named with arguments, wrap models and pipelines, keep functions.

    A model's reward is its logit, also where its pipeline would make a probability of it.

    Args:
        sources: one or more rewards.
        tokenizers: one for each reward that is a model object, None elsewhere; or None for all.
            A path or pipeline brings its own.
        policy: the policy's model; a reward adapter trained on its base shares it.
        device: where separate reward models go.
        weights, clips, normalize: one a reward, or None; see `Rewards`.
        share_base: whether adapters may share the policy's base. Otherwise each gets a base of its own, of the same
            dtype.
        ensemble_reward, ensemble_std_coef: how an ensemble's rewards are combined, instead of what its file says.
    """
    given: list[Any] = list(sources) if isinstance(sources, (list, tuple)) else [sources]
    tokenizers = list(tokenizers) if isinstance(tokenizers, (list, tuple)) else [tokenizers] * len(given)
    if len(tokenizers) != len(given):
        raise InputError(
            f"reward_processing_classes is invalid: it has {len(tokenizers)} entries for {len(given)} rewards. Give one"
            " for each, and None for a function."
        )
    combination = (ensemble_reward, ensemble_std_coef)
    _require_ensemble(given, ensemble_reward, ensemble_std_coef)
    functions = [
        _to_function(source, tokenizer, policy, device, share_base, combination)
        for source, tokenizer in zip(given, tokenizers, strict=True)
    ]
    return Rewards(functions, weights, clips, normalize)


def _require_ensemble(sources: Sequence[Any], ensemble_reward: str | None, ensemble_std_coef: float | None) -> None:
    """Raise `InputError` for flags of an ensemble where no reward is one."""
    if ensemble_reward is None and ensemble_std_coef is None:
        return
    paths = [os.fspath(each) for each in sources if isinstance(each, (str, os.PathLike))]
    if not any(ensemble_folder(path) for path in paths if not names_function(path)):
        name, value = ("ensemble_std_coef", ensemble_std_coef) if ensemble_reward is None else (
            "ensemble_reward", ensemble_reward
        )  # fmt: skip
        raise InputError(
            f"{name}={value} is invalid: no reward is an ensemble. Omit it, or give the folder of a run with"
            " num_reward_models."
        )


def reward_tokenizers(sources: Sequence[RewardSource]) -> dict[str, Any]:
    """Return the tokenizer of each reward that is a model by its name, for checks before any model is loaded.

    Raises `InputError` for a named reward with a wrong argument.
    """
    names = [os.fspath(source) for source in sources if isinstance(source, (str, os.PathLike))]
    for name in names:
        if is_named_reward(name):
            require_named(name)
        else:
            require_no_typing_slip(name)
    return {name: load_reward_tokenizer(name) for name in names if not names_function(name)}


def require_functions(rewards: Rewards) -> None:
    """Raise `InputError` for a reward that cannot be called while the policy samples.

    A model would share the device, or the policy's base, with sampling. Some functions work in the main thread only.
    """
    named = [name for name, function in zip(rewards.names, rewards.functions, strict=True) if _has_model(function)]
    if models := [*reward_models(rewards), *named]:
        raise InputError(
            f"reward_while_sampling=True is invalid: {', '.join(models)} is a model, which computes where the policy"
            " does. Omit it, or use rewards that are functions, such as calls to a server."
        )
    pairs = zip(rewards.names, rewards.functions, strict=True)
    if tied := [name for name, function in pairs if getattr(function, "main_thread", False)]:
        raise InputError(
            f"reward_while_sampling=True is invalid: {', '.join(tied)} keeps its time limits in the main thread only,"
            " where the policy samples. Omit it."
        )


def require_reachable(sources: Sequence[Any]) -> None:
    """Ask the server of each reward that has one. Raises `EndpointError` where none answers."""
    for source in sources:
        if (ask := getattr(source, "require_reachable", None)) is not None:
            ask()


def separate_dtypes(rewards: Rewards) -> dict[str, torch.dtype]:
    """Return the dtype of each reward model that has a base of its own, by the reward's name."""
    return {
        name: base_of(each.model).dtype
        for name, each in reward_models(rewards).items()
        if isinstance(each, SeparateRewardModel)
    }


def reward_models(rewards: Rewards) -> dict[str, Callable[..., Any]]:
    """Return the models among the rewards, by the reward's name; an ensemble's members are numbered.

    Each of them takes token ids, such as a `SharedRewardModel`.
    """
    models: dict[str, Callable[..., Any]] = {}
    for name, function in zip(rewards.names, rewards.functions, strict=True):
        if isinstance(function, EnsembleReward):
            models |= {f"{name} ({number})": member for number, member in enumerate(function.members, start=1)}
        elif isinstance(function, LearnedReward):
            models[name] = function.model
    return models


def _has_model(function: Any) -> bool:
    """Return whether this is a named reward with a model of its own."""
    return hasattr(function, "shaping") and hasattr(function, "to")


def _to_function(
    source: Any,
    tokenizer,
    policy: Model | None,
    device: torch.device,
    share_base: bool,
    combination: tuple[str | None, float | None],
) -> RewardFunction:
    """Return the reward `source` as a function by the contract."""
    if isinstance(source, TextClassificationPipeline):  # its own call gives labels, and squashes the logit
        source, tokenizer = source.model, tokenizer or source.tokenizer
    if isinstance(source, str) and is_named_reward(source):
        source = make_reward(source)
    if isinstance(source, (str, os.PathLike)):
        path = os.fspath(source)
        name = Path(path).name if os.path.isdir(path) else path.split("/")[-1]
        dtype = native_dtype(device)
        if (folder := ensemble_folder(path)) is not None:
            shared = policy if share_base else None
            how = {"combination": combination[0], "std_coef": combination[1]}
            return load_ensemble(folder, policy=shared, tokenizer=tokenizer, name=name, device=device, **how)
        if not share_base and policy is not None and is_peft_model(policy) and stands_on(adapter_folder(path), policy):
            dtype = base_of(policy).dtype
        reward_model, loaded_tokenizer = load_reward_model(
            path, policy=policy if share_base else None, name=free_name(policy), dtype=dtype
        )
        tokenizer = tokenizer or loaded_tokenizer
    elif isinstance(source, nn.Module) and hasattr(source, "config"):
        path = str(source.config._name_or_path)  # pyright: ignore[reportAttributeAccessIssue]
        name = Path(path).name or "reward_model"
        require_reward_model(source, path or name)
        if not tokenizer and not path:
            raise InputError(
                f"the reward model {type(source).__name__} was loaded from no folder that could hold its tokenizer. "
                "Give the tokenizer in reward_processing_classes."
            )
        reward_model = SeparateRewardModel(source)
        tokenizer = tokenizer or load_tokenizer(path, distinct_padding=False)
    elif callable(source) and not isinstance(source, Pipeline):
        if _has_model(source):
            source.to(device)
        return source
    else:
        raise InputError(
            f"reward_funcs={type(source).__name__} is invalid: it is no reward. Give a function of prompts and"
            " completions that returns a list of numbers, a transformers sequence classifier with num_labels=1, a"
            " text-classification pipeline of one, or the folder or Hub name of a trained reward model."
        )
    if isinstance(reward_model, SeparateRewardModel):
        reward_model.model.to(device)
    return LearnedReward(reward_model, tokenizer, name=name, max_length=positions(reward_model.model), device=device)
