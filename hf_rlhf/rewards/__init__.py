"""Rewards: TRL's reward-function contract, learned reward models, and the weighted sum of several."""

from typing import TYPE_CHECKING

from hf_rlhf.lazy import lazy_names

if TYPE_CHECKING:
    from hf_rlhf.rewards.cache import RewardCache
    from hf_rlhf.rewards.contract import Rewards
    from hf_rlhf.rewards.functions import load_function
    from hf_rlhf.rewards.learned import LearnedReward
    from hf_rlhf.rewards.named import make_reward
    from hf_rlhf.rewards.sources import resolve_rewards

_HOMES = {
    "LearnedReward": "hf_rlhf.rewards.learned",
    "RewardCache": "hf_rlhf.rewards.cache",
    "Rewards": "hf_rlhf.rewards.contract",
    "load_function": "hf_rlhf.rewards.functions",
    "make_reward": "hf_rlhf.rewards.named",
    "resolve_rewards": "hf_rlhf.rewards.sources",
}
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
__all__ = ["LearnedReward", "RewardCache", "Rewards", "load_function", "make_reward", "resolve_rewards"]
