"""Rewards of a command that only scores: the flags that name them, and what they name, loaded."""

from dataclasses import dataclass
from typing import Any

import torch

from hf_rlhf.errors import InputError
from hf_rlhf.recipes.arguments import flag
from hf_rlhf.rewards.contract import Rewards
from hf_rlhf.rewards.named import loaded_rewards
from hf_rlhf.rewards.sources import require_reachable, resolve_rewards, reward_tokenizers


@dataclass
class RewardFlags:
    """The rewards, how they are combined, and where they are kept."""

    reward_model_path: str | None = flag(None, "Folder or Hub name of a trained reward model.")
    reward_funcs: list[str] | None = flag(None, "Rewards: models, functions, or named rewards, as for ppo.")
    reward_weights: list[float] | None = flag(None, "A weight for each reward; 1 each by default.")
    reward_clips: list[float] | None = flag(None, "A largest size for each reward, before its weight; inf for none.")
    ensemble_reward: str | None = flag(None, "Reward of an ensemble, as for ppo: mean, min or mean_minus_std.")
    ensemble_std_coef: float | None = flag(None, "Lambda of mean_minus_std, instead of the ensemble's own.")
    reward_cache: str | None = flag(None, "Folder of a cache of rewards, which is read and filled, as for ppo.")
    use_cpu: bool = flag(False, "Leave an accelerator unused.")

    @property
    def reward_names(self) -> list[str]:
        """The rewards by their names."""
        return [name for name in (self.reward_model_path, *(self.reward_funcs or ())) if name]


def reward_sources(arguments: RewardFlags) -> list[Any]:
    """Return the rewards that the flags name: functions and named rewards as functions, models by their names.

    Raises `InputError` for wrong ones, and where a server that is asked does not answer.
    """
    reward_tokenizers(arguments.reward_names)  # refuses what is wrong
    sources = loaded_rewards(arguments.reward_model_path, arguments.reward_funcs)
    if arguments.reward_cache is None:  # which may hold all that a server would be asked
        require_reachable(sources)
    return sources


def load_rewards(arguments: RewardFlags, sources: list[Any]) -> Rewards:
    """Load the models among `reward_sources`, and combine all by the flags."""
    device = None if arguments.use_cpu else torch.accelerator.current_accelerator()
    rewards = resolve_rewards(
        sources,
        None,
        policy=None,
        device=device or torch.device("cpu"),
        weights=arguments.reward_weights,
        clips=arguments.reward_clips,
        ensemble_reward=arguments.ensemble_reward,
        ensemble_std_coef=arguments.ensemble_std_coef,
    )
    if normalized := [name for name, shaping in rewards.shapings.items() if shaping.normalize]:
        raise InputError(
            f"normalize=true of {', '.join(normalized)} is for runs: here a score would depend on other rows. Omit it"
        )
    return rewards
