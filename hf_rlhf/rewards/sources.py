"""From what a user gives as rewards (functions, models, paths) to functions by the contract."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_rlhf.errors import InputError
from hf_rlhf.models.load import load_tokenizer
from hf_rlhf.models.reward_model import SeparateRewardModel, load_reward_model, require_reward_model
from hf_rlhf.rewards.contract import RewardFunction, Rewards
from hf_rlhf.rewards.learned import LearnedReward
from hf_rlhf.types import Model

RewardSource = str | PreTrainedModel | RewardFunction


def resolve_rewards(
    sources: RewardSource | Sequence[RewardSource],
    tokenizers,
    *,
    policy: Model,
    device: torch.device,
    weights: Sequence[float] | None,
) -> Rewards:
    """Load what is named by path, wrap what is a model, keep what is a function.

    Args:
        sources: one or more rewards.
        tokenizers: one for each reward that is a model object, None elsewhere; or None for all.
        policy: the policy's model; a reward adapter trained on its base shares it.
        device: where separate reward models go.
        weights: one a reward, or None.
    """
    given: list[Any] = list(sources) if isinstance(sources, (list, tuple)) else [sources]
    tokenizers = list(tokenizers) if isinstance(tokenizers, (list, tuple)) else [tokenizers] * len(given)
    if len(tokenizers) != len(given):
        raise InputError(f"reward_processing_classes has {len(tokenizers)} entries for {len(given)} rewards")
    functions = [
        _function(source, tokenizer, number, policy, device)
        for number, (source, tokenizer) in enumerate(zip(given, tokenizers, strict=True))
    ]
    return Rewards(functions, weights)


def _function(source: Any, tokenizer, number: int, policy: Model, device: torch.device) -> RewardFunction:
    if isinstance(source, str):
        name = Path(source).name if os.path.isdir(source) else source.split("/")[-1]
        adapter = "reward" if number == 0 else f"reward_{number}"
        scorer, loaded_tokenizer = load_reward_model(source, policy=policy, name=adapter)
        tokenizer = tokenizer or loaded_tokenizer
    elif isinstance(source, nn.Module):
        path = str(source.config._name_or_path)  # pyright: ignore[reportAttributeAccessIssue]
        name = Path(path).name or "reward_model"
        require_reward_model(source, path)
        scorer = SeparateRewardModel(source)
        tokenizer = tokenizer or load_tokenizer(path, distinct_padding=False)
    elif callable(source):
        return source
    else:
        raise InputError(f"a reward is a function, a model or a path, not {type(source).__name__}")
    if isinstance(scorer, SeparateRewardModel):
        scorer.model.to(device)
    return LearnedReward(scorer, tokenizer, name=name, device=device)
