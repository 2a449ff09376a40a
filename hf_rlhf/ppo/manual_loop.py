"""Conversion of the arguments of `PPOTrainer.step` to scored trajectories, for the owner of a loop."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hf_rlhf.errors import InputError
from hf_rlhf.rewards.contract import Rewards
from hf_rlhf.rollout.collect import trajectory_of
from hf_rlhf.rollout.sampling import Sampling
from hf_rlhf.rollout.support import require_supported
from hf_rlhf.types import Completion, Trajectory


class TokenRules(NamedTuple):
    """Limits that the model and the run put on a completion."""

    vocab_size: int
    stop_ids: Sequence[int]  # the last id of a completion that stopped by itself
    sampling: Sampling
    chat_template_kwargs: Mapping[str, Any] | None = None  # that the prompts were rendered with


def given_trajectories(
    rows: Sequence[Mapping[str, Any]],
    completions: Sequence[Completion | Sequence[int]],
    scores: Sequence[float | Sequence[float] | None] | Tensor,
    masks: Sequence[Sequence[bool]] | None,
    tokenizer,
    rules: TokenRules,
) -> list[Trajectory]:
    """Scored trajectories. Raises `InputError` when lengths do not fit or a score is not a finite number."""
    given: Sequence[Any] = scores.tolist() if isinstance(scores, Tensor) else scores
    for name, values in (("completions", completions), ("scores", given), ("masks", masks)):
        if values is not None and len(values) != len(rows):
            raise InputError(f"step() got {len(rows)} prompts and {len(values)} {name}; give one of each")
    trajectories = []
    for b, (row, completion) in enumerate(zip(rows, completions, strict=True)):
        if not isinstance(completion, Completion):
            ids = [int(token) for token in completion]
            words = tokenizer.decode(ids, skip_special_tokens=True).rstrip()
            ended = any(words.endswith(stop) for stop in rules.sampling.stop_strings)
            completion = Completion(ids, [], stopped=ended or (bool(ids) and ids[-1] in rules.stop_ids))
        _require_possible(completion, rules, b)
        trajectory = trajectory_of(row, completion, tokenizer, rules.chat_template_kwargs)
        if masks is not None:
            if len(masks[b]) != len(completion.ids):
                raise InputError(
                    f"mask {b} (counted from 0) has {len(masks[b])} entries for a completion of"
                    f" {len(completion.ids)} tokens"
                )
            trajectory.mask = [bool(counts) for counts in masks[b]]
        if completion.support is not None:
            require_supported(trajectory, b, tokenizer, rules.sampling)
        trajectories.append(trajectory)

    def score(prompts, completions):
        return given

    Rewards([score]).score(trajectories)
    for b, trajectory in enumerate(trajectories):
        by_token, mask = trajectory.token_rewards, trajectory.mask
        if by_token is not None and mask is not None and by_token[~torch.tensor(mask)].any():
            raise InputError(f"score {b} (counted from 0) pays a token that its mask does not count; give it 0 there")
    return trajectories


def _require_possible(completion: Completion, rules: TokenRules, b: int) -> None:
    """Raise `InputError` for ids that the model does not know, and for more of them than the run allows."""
    name = f"completion {b} (counted from 0)"
    if outside := [token for token in completion.ids if not 0 <= token < rules.vocab_size]:
        raise InputError(f"{name} has ids {outside[:5]} outside of the model's vocabulary of {rules.vocab_size}")
    if len(completion.ids) > (longest := rules.sampling.max_completion_length):
        raise InputError(
            f"{name} has {len(completion.ids)} tokens, above max_completion_length={longest}; raise that, or cut the"
            " completion"
        )
    if completion.logprobs and len(completion.logprobs) != len(completion.ids):
        raise InputError(f"{name} has {len(completion.logprobs)} logprobs for {len(completion.ids)} tokens")
    if not all(map(math.isfinite, completion.logprobs)):
        raise InputError(f"{name} has a logprob that is no finite number")
