"""Lengths of the sequences of a run, against the positions of its models."""

from typing import TYPE_CHECKING

from hf_rlhf.errors import InputError
from hf_rlhf.models.policy import PolicyWithValue
from hf_rlhf.models.positions import positions
from hf_rlhf.ppo.config import PPOConfig
from hf_rlhf.types import Model

if TYPE_CHECKING:
    from hf_rlhf.ppo.build import PPOData


def longest_sequence(args: PPOConfig, data: "PPOData") -> int:
    """Return the most tokens that one sequence will have; prompts of unknown number are as long as they may be."""
    known = data.num_prompts is not None
    longest_prompt = max(map(len, data.prompts["prompt_ids"])) if known else args.max_prompt_length
    texts = () if data.texts is None else data.texts
    longest_text = max((len(row["prompt_ids"]) + len(row["completion_ids"]) for row in texts), default=0)
    return max(longest_prompt + data.longest_completion, longest_text)


def check_context_length(model: Model, args: PPOConfig, longest_completion: int, name: str = "the model") -> None:
    """Raise `InputError` when prompt and completion (or episode) together can be longer than the model's positions."""
    limit = positions(model)
    needed = args.max_prompt_length + longest_completion
    flag = "max_completion_length" if longest_completion == args.max_completion_length else "max_episode_length"
    if limit is not None and needed > limit:
        raise InputError(
            f"max_prompt_length={args.max_prompt_length} + {flag}={longest_completion} ="
            f" {needed} tokens, but {name} has {limit} positions; make one of them smaller"
        )


def require_positions(policy: PolicyWithValue, texts) -> None:
    """Raise `InputError` for texts of PPO-ptx that are longer than the model's positions."""
    limit = positions(policy.model)
    longest = max(len(row["prompt_ids"]) + len(row["completion_ids"]) for row in texts)
    if limit is not None and longest > limit:
        raise InputError(
            f"a text of ptx_dataset has {longest} tokens and the model {limit} positions; lower max_ptx_length"
        )
